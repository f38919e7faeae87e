"""What dies during a soak, and how long the service takes to be whole again."""

import os
import random
import signal
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any

from omni_rl.bench.soak.load import PATIENT, Load
from omni_rl.bench.soak.memory import processes
from omni_rl.client.blocking import Client
from omni_rl.errors import OmniRLError
from omni_rl.processes import wait_until_gone
from omni_rl.service.state import Process

EVERY = (30.0, 75.0)
"""Seconds between two deaths."""
KINDS = ("coordinator", "bridge", "engine", "job")
LATE = ("engine", "job")
"""What dies in the end, when the coordinator, the bridge and the oldest engine live on: a process that is always young
would show no growth."""
LATE_FROM = 0.4
"""Of the time; the memory of the last half is compared, and whoever was started last has warmed up by then."""
WHOLE_SECONDS = 240.0
LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Death:
    """`at`: seconds from the beginning; `whole_after`: until everything answered again, None: it never did."""

    what: str
    at: float
    whole_after: float | None


class Killer:
    """Kills at random, until `load` has ended; `minutes`: when that will be."""

    def __init__(self, load: Load, seed: int, minutes: float) -> None:
        self._load = load
        self._service = load.service
        self._random = random.Random(seed)  # noqa: S311, what dies is no secret
        self._late = minutes * 60 * LATE_FROM
        self._acting = threading.Lock()
        self.deaths: list[Death] = []

    def run(self) -> None:
        began = time.monotonic()
        ended = self._load.callers.ended
        waiting: list[str] = []
        with self._service.client(PATIENT) as client:
            while not ended.wait(self._random.uniform(*EVERY)):
                kinds = KINDS if time.monotonic() - began < self._late else LATE
                # Every kind is as often: a soak of a few minutes has met most.
                waiting = [kind for kind in waiting if kind in kinds] or self._random.sample(kinds, len(kinds))
                what = waiting.pop()
                struck = time.monotonic()
                with self._load.calls.dead():
                    with self._acting:
                        if ended.is_set() or not self._strike(what, client):
                            continue
                    whole = self._whole(client)
                after = round(time.monotonic() - struck, 1) if whole else None
                self.deaths.append(Death(what, round(struck - began, 1), after))

    def rest(self) -> None:
        """Return when nothing is being killed or started; after the load was told to end, nothing will be."""
        with self._acting:
            pass

    def _strike(self, what: str, client: Client) -> bool:
        """Whether there was one."""
        if what == "job":
            return self._load.stop_job(client)
        pids = processes(self._service.run)[what]
        if not pids:
            return False
        youngest = max(pids, key=lambda pid: int(Process.of(pid).started or 0))
        os.kill(youngest, signal.SIGKILL)
        wait_until_gone([youngest])
        if what == "coordinator":
            self._service.command("up")
        return True

    def _whole(self, client: Client) -> bool:
        """Whether everything answers again, engines with the served weights behind an open gate. A sync brings in the
        successors of engines that died, as any job's next step would."""
        deadline = time.monotonic() + WHOLE_SECONDS
        while time.monotonic() < deadline:
            try:
                self._load.acknowledged.sync(client.sync())
                state = client.state()
                if client.ready().ready and state.cluster.connected and state.gate.gate == "open":
                    return True
            except OmniRLError:
                pass  # not yet
            time.sleep(LOOK_SECONDS)
        return False

    def figures(self) -> dict[str, Any]:
        return {"deaths": [asdict(death) for death in self.deaths]}
