"""The coordinator's end of the bridge: a child process that owns the connection to Ray, started again when it dies."""

import asyncio
import contextlib
import logging
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omni_rl.api.jobs import JobAnswer
from omni_rl.bridge.protocol import (
    MAX_LINE,
    SIGNATURES,
    VERSION,
    BridgeCall,
    Failure,
    Happened,
    Message,
    Method,
    Reply,
    Start,
    decode,
    encode,
    pack,
    unpack,
)
from omni_rl.bridge.seam import CheckRequest, CheckResult, ClusterState, JobRequest, SyncRequest
from omni_rl.bridge.settings import ClusterSettings
from omni_rl.errors import BridgeProtocolError, OmniRLError, RayUnavailableError
from omni_rl.processes import StopClock
from omni_rl.sync.result import SyncResult
from omni_rl.sync.states import Observer

logger = logging.getLogger("omni_rl.coordinator")
COMMAND = (sys.executable, "-m", "omni_rl.bridge")
STATE_SECONDS = 10.0
"""Seconds for the bridge to report the state of the cluster; it asks every actor, which have 3 s."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
"""Seconds between the first two starts, and the most between any two: doubled each time, until a bridge has lived for
`STEADY_SECONDS`."""
STEADY_SECONDS = 30.0
STOPPED_SECONDS = 5.0
"""Seconds for which a bridge may be stopped (SIGSTOP, a debugger) before it is killed. Callers would wait for its
answers for ever; its successor finds everything that it had."""
LOOK_SECONDS = 1.0
EXIT_SECONDS = 5.0
"""Seconds for a bridge to end once its connection is closed, before it is killed."""


@dataclass
class _Asked:
    method: Method
    reply: "asyncio.Future[Any]"
    observe: Observer | None


class SupervisedBridge:
    """`omni_rl.bridge.seam.Bridge` over a child process. `command` gets the number of a socket as its last argument."""

    def __init__(
        self,
        settings: ClusterSettings,
        command: Sequence[str] = COMMAND,
        *,
        first_pause: float = FIRST_PAUSE,
        stopped_seconds: float = STOPPED_SECONDS,
    ) -> None:
        self._settings = settings
        self._command = tuple(command)
        self._first_pause = first_pause
        self._stopped_seconds = stopped_seconds
        self._hold: str | None = None
        self._reason = "the bridge is starting"
        self._stopped = ""
        self._writer: asyncio.StreamWriter | None = None
        self._asked: dict[int, _Asked] = {}
        self._last = 0
        self._life: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id, or None while there is no child."""
        return None if self._process is None else self._process.pid

    async def open(self, hold: str | None) -> None:
        self._hold = hold
        self._life = asyncio.create_task(self._supervise(), name="bridge")

    async def state(self) -> ClusterState:
        try:
            async with asyncio.timeout(STATE_SECONDS):
                seen: ClusterState = await self._call("state")
        except OmniRLError as error:
            return ClusterState(connected=False, reason=str(error))
        except TimeoutError:
            return ClusterState(connected=False, reason=f"the bridge did not answer within {STATE_SECONDS:g} s")
        if not seen.connected:
            self._reason = seen.reason
        return seen

    async def sync(self, request: SyncRequest, observe: Observer) -> SyncResult:
        result: SyncResult = await self._call("sync", request, observe)
        return result

    async def check(self, request: CheckRequest) -> CheckResult:
        found: CheckResult = await self._call("check", request)
        return found

    async def pause(self, reason: str) -> None:
        self._hold = reason
        await self._call("pause", reason)

    async def resume(self) -> None:
        self._hold = None
        await self._call("resume")

    async def submit(self, request: JobRequest) -> JobAnswer:
        job: JobAnswer = await self._call("submit", request)
        return job

    async def jobs(self) -> list[JobAnswer]:
        jobs: list[JobAnswer] = await self._call("jobs")
        return jobs

    async def job(self, job: str) -> JobAnswer:
        found: JobAnswer = await self._call("job", job)
        return found

    async def stop(self, job: str) -> JobAnswer:
        stopped: JobAnswer = await self._call("stop", job)
        return stopped

    async def logs(self, job: str) -> str:
        text: str = await self._call("logs", job)
        return text

    async def close(self) -> None:
        if self._life is not None:
            self._life.cancel()
            await asyncio.gather(self._life, return_exceptions=True)

    async def _call(self, method: Method, argument: Any = None, observe: Observer | None = None) -> Any:
        writer = self._writer
        if writer is None:
            raise RayUnavailableError(self._reason)
        self._last += 1
        number = self._last
        takes, gives = SIGNATURES[method]
        asked = _Asked(method, asyncio.get_running_loop().create_future(), observe)
        self._asked[number] = asked
        try:
            writer.write(encode(BridgeCall(number, method, None if takes is None else pack(takes, argument))))
            body = await asked.reply
        finally:
            del self._asked[number]
        return None if gives is None else unpack(gives, body)

    async def _supervise(self) -> None:
        pause = self._first_pause
        while True:
            began = time.monotonic()
            try:
                await self._live()
            except (OSError, BridgeProtocolError) as error:
                logger.exception("the bridge failed")
                self._reason = f"the bridge failed: {error}"
            if time.monotonic() - began >= STEADY_SECONDS:
                pause = self._first_pause
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _live(self) -> None:
        """Run one child, from its start to its end."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = process = await asyncio.create_subprocess_exec(
                    *self._command, str(theirs.fileno()), pass_fds=(theirs.fileno(),), stdin=asyncio.subprocess.DEVNULL
                )
            reader, writer = await asyncio.open_connection(sock=ours, limit=MAX_LINE)
        except BaseException:
            ours.close()
            raise
        watch = asyncio.create_task(self._end_stopped(process), name="stopped bridge")
        try:
            writer.write(encode(Start(VERSION, self._settings, self._hold)))
            self._writer = writer
            while line := await self._line(reader):
                self._hear(decode(line))
        finally:
            watch.cancel()
            self._writer = None
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            code = await _ended(process)
            self._process = None
            self._fail(code)

    async def _end_stopped(self, process: asyncio.subprocess.Process) -> None:
        """Kill the child once it has been stopped for too long."""
        clock = StopClock(process.pid)
        while True:
            await asyncio.sleep(min(LOOK_SECONDS, self._stopped_seconds))
            stopped = clock.seconds()
            if stopped is not None and stopped >= self._stopped_seconds:
                self._stopped = f"the bridge to Ray (process {process.pid}) was stopped (SIGSTOP or frozen), and killed"
                logger.error("%s", self._stopped)
                process.kill()
                return

    async def _line(self, reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.readline()
        except ConnectionError:
            return b""
        except ValueError as error:
            raise BridgeProtocolError(f"a line of over {MAX_LINE} bytes") from error

    def _hear(self, message: Message) -> None:
        if isinstance(message, Happened):
            asked = self._asked.get(message.id)
            if asked is not None and asked.observe is not None:
                asked.observe(message.event)
            return
        if not isinstance(message, Reply | Failure):
            raise BridgeProtocolError(f"a bridge does not send {message.kind}")
        asked = self._asked.get(message.id)
        # Whoever asked may have gone.
        if asked is not None and not asked.reply.done():
            if isinstance(message, Reply):
                asked.reply.set_result(message.body)
            else:
                asked.reply.set_exception(message.error())

    def _fail(self, code: int) -> None:
        """Fail every call that this child has not answered."""
        logger.warning("the bridge ended with code %s: %s", code, self._reason)
        what = self._stopped or f"the bridge to Ray ended (code {code})"
        if self._stopped:
            self._reason, self._stopped = f"{what}; it is being started again", ""
        for asked in self._asked.values():
            if not asked.reply.done():
                asked.reply.set_exception(
                    RayUnavailableError(
                        f"{what} before it answered {asked.method}; it is being started again, and finishes or rolls "
                        "back what was under way"
                    )
                )


async def _ended(process: asyncio.subprocess.Process) -> int:
    try:
        async with asyncio.timeout(EXIT_SECONDS):
            return await process.wait()
    except TimeoutError:
        process.kill()
        return await process.wait()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
