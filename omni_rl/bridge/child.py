"""Runs the bridge's own loop: reads calls, answers each from a thread, and ends with the coordinator or with Ray's
head."""

import logging
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omni_rl.bridge.node import join
from omni_rl.bridge.protocol import (
    MAX_LINE,
    SIGNATURES,
    BridgeCall,
    Failure,
    Happened,
    Message,
    Reply,
    Start,
    decode,
    encode,
    pack,
    unpack,
)
from omni_rl.bridge.seam import ClusterState
from omni_rl.bridge.settings import ClusterSettings
from omni_rl.errors import BridgeProtocolError, OmniRLError, RayUnavailableError
from omni_rl.heap import uncollected

if TYPE_CHECKING:
    from omni_rl.bridge.cluster import Cluster
    from omni_rl.bridge.jobs import RayJobs

logger = logging.getLogger("omni_rl.bridge")
THREADS = 16
"""How many calls of one pool run at once."""
OF_JOBS = ("submit", "jobs", "job", "stop", "logs")
"""The calls that ask Ray's dashboard, which may be stopped."""
POOLS = {**dict.fromkeys(OF_JOBS, "jobs"), "check": "check", "sync": "sync"}
"""The calls that may take long, with the pool of threads that each runs in; all other calls share one pool. Long calls
must not keep a pause waiting, nor may checks keep the sync waiting that they wait for."""
PROBE_SECONDS = 2.0
"""The seconds for the head to take a connection."""
WATCH_SECONDS = 1.0
MISSES = 3
"""How many failed probes in a row make the head count as gone."""
SILENCES = 3
"""How many unanswered questions in a row make one of Ray's processes count as stopped."""
GIVEN_UP = 20
"""How many unanswered questions in a row end the bridge, so that its callers do not wait forever: a call of Ray's own
has no deadline. They take about a minute."""
RETRY_SECONDS = 2.0
"""The seconds between two looks for a head, and for which the reason of an end can be read."""
LOST = 3
"""The exit code when the head or the trainer is gone: a driver's connection cannot be repaired, so the next process
makes a new one."""


@dataclass(frozen=True)
class Attachment:
    """The cluster and its jobs, which exist once the connection stands."""

    cluster: "Cluster"
    jobs: "RayJobs"


class Child:
    """One life of the bridge: it connects once, and ends when that connection is lost."""

    def __init__(self, parent: socket.socket) -> None:
        self._parent = parent
        self._lines = parent.makefile("rb")
        self._sending = threading.Lock()
        self._attachment: Attachment | None = None
        self._reason = "connecting"
        self._silent = ""
        self._hold: str | None = None
        self._holding = threading.Lock()

    def run(self) -> None:
        """Read calls, and answer each from a thread, until the coordinator closes its end."""
        start = self._read()
        if not isinstance(start, Start):
            raise BridgeProtocolError("the first message is not Start")
        self._hold = start.hold
        threading.Thread(target=self._connect, args=(start.settings,), name="connect", daemon=True).start()
        pools = {name: ThreadPoolExecutor(THREADS, name) for name in {"call", *POOLS.values()}}
        while (message := self._read()) is not None:
            if not isinstance(message, BridgeCall):
                raise BridgeProtocolError(f"a coordinator does not send {message.kind}")
            pools[POOLS.get(message.method, "call")].submit(self._answer, message)

    def _read(self) -> Message | None:
        try:
            line = self._lines.readline(MAX_LINE)
        except ConnectionError:  # it was killed before it had read all that was sent to it
            return None
        return decode(line) if line else None

    def _send(self, message: Message) -> None:
        with self._sending:
            self._parent.sendall(encode(message))

    def _answer(self, call: BridgeCall) -> None:
        takes, gives = SIGNATURES[call.method]
        try:
            arguments = () if takes is None else (unpack(takes, call.body),)
            result = self._do(call, *arguments)
        except OmniRLError as error:
            self._send(Failure(call.id, error.code, str(error)))
        except Exception as error:  # the process boundary: the coordinator gets the error's text, the log has the rest
            logger.exception("%s failed", call.method)
            self._send(Failure(call.id, OmniRLError.code, f"{call.method}: {type(error).__name__}: {error}"))
        else:
            self._send(Reply(call.id, None if gives is None else pack(gives, result)))

    def _do(self, call: BridgeCall, *arguments: Any) -> Any:
        if call.method in ("pause", "resume"):
            with self._holding:
                # A hold that comes while the cluster is being attached to counts from its first moment on.
                self._hold = arguments[0] if arguments else None
        attached = self._attachment
        if attached is None:
            if call.method == "state":
                return ClusterState(connected=False, reason=self._reason)
            raise RayUnavailableError(self._reason)
        if call.method == "sync":
            (request,) = arguments
            return attached.cluster.sync(request, lambda event: self._send(Happened(call.id, event)))
        if call.method == "state" and self._silent:
            return ClusterState(connected=False, reason=self._silent)
        if call.method == "jobs":
            return attached.jobs.all()
        if call.method in OF_JOBS:
            return getattr(attached.jobs, call.method)(*arguments)
        return getattr(attached.cluster, call.method)(*arguments)

    def _connect(self, settings: ClusterSettings) -> None:
        while True:
            if not answers(settings.address):
                self._reason = f"no Ray head answers at {settings.address}; omni-rl up starts its own again"
                time.sleep(RETRY_SECONDS)
                continue
            self._reason = f"attaching to the actors of run {settings.run} at {settings.address}"
            try:
                self._serve(settings)
            except Exception as error:  # whatever Ray raises becomes the reason, and a new process tries again
                logger.exception("attaching to %s failed", settings.address)
                self._reason = f"attaching to {settings.address} failed: {error}"
            self._end(self._reason)

    def _serve(self, settings: ClusterSettings) -> None:
        with uncollected():
            from omni_rl.bridge.cluster import Cluster
            from omni_rl.bridge.jobs import RayJobs
        if settings.join:
            join(settings.address)
        with self._holding:
            hold = self._hold
        with Cluster.attached(settings, hold) as cluster:
            with self._holding:
                if self._hold != hold:
                    cluster.pause(self._hold) if self._hold is not None else cluster.resume()
                self._attachment = Attachment(cluster, RayJobs(settings.dashboard, settings.job_environment))
            logger.info("attached to run %s at %s", settings.run, settings.address)
            self._end(self._watch(settings.address, cluster))

    def _watch(self, head: str, cluster: "Cluster") -> str:
        """Wait until this connection, or the actors that it found, are no longer of use, and return why."""
        from omni_rl.bridge.head import own_raylet, serves

        asked = {"Ray's head": head, "the raylet of this host": own_raylet()}
        misses, silences = 0, dict.fromkeys(asked, 0)
        while misses < MISSES:
            time.sleep(WATCH_SECONDS)
            misses = 0 if answers(head) else misses + 1
            silences = {what: 0 if serves(where) else silences[what] + 1 for what, where in asked.items()}
            silent = " and ".join(f"{what} at {asked[what]}" for what in asked if silences[what] >= SILENCES)
            self._silent = f"no answer from {silent}: it is stopped, or its machine too busy" if silent else ""
            if max(silences.values()) >= GIVEN_UP:
                return self._silent
            # While a process of Ray's does not answer, it is not known who died.
            if not any(silences.values()) and (died := cluster.trainer_died()):
                return f"{died}; another trainer is being started, with the weights of the checkpoint"
        return f"no Ray head answers at {head}; omni-rl up starts its own again"

    def _end(self, reason: str) -> None:
        """End this life of the bridge: the next one starts what is missing, and settles a sync that was under way."""
        logger.error("the bridge ends: %s", reason)
        self._reason, self._attachment = reason, None
        # The coordinator must have time to read the reason before the next process tries again.
        time.sleep(RETRY_SECONDS)
        os._exit(LOST)


def answers(address: str) -> bool:
    """Return whether a process takes connections at host:port."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), PROBE_SECONDS).close()
    except OSError:
        return False
    return True
