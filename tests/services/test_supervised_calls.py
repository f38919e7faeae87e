"""Every call of a supervised bridge, over a child of a few lines, and what becomes of calls that go wrong."""

import asyncio
import sys
import types
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from omni_rl_services.coordinator import supervisor
from omni_rl_services.coordinator.supervisor import SupervisedBridge

from omni_rl.api.jobs import JobAnswer
from omni_rl.bridge.seam import CheckRequest, ClusterState, JobRequest, SyncRequest
from omni_rl.bridge.settings import ClusterSettings
from omni_rl.errors import NotFoundError, RayUnavailableError

pytestmark = pytest.mark.anyio
SETTINGS = ClusterSettings(
    address="127.0.0.1:1", dashboard="http://127.0.0.1:2", run="r", model=Path("/m"), ledger="sqlite:///l"
)
CHILD = """
import json, os, socket, sys

JOB = {"job": "j1", "kind": "grpo", "status": "running", "submitted": 5.0, "parameters": {"run": "r"}}
ANSWERS = {
    "check": {"version": "v1", "figures": {}},
    "submit": JOB, "jobs": [JOB, {**JOB, "job": "j2"}], "job": {**JOB, "status": "failed"},
    "stop": {**JOB, "status": "stopped"}, "logs": "step 1",
}
how = sys.argv[1]
parent = socket.socket(fileno=int(sys.argv[2]))
lines = parent.makefile("rb")
start = json.loads(lines.readline())
held = start["hold"]

def send(**message):
    parent.sendall(json.dumps(message).encode() + b"\\n")

for line in lines:
    call = json.loads(line)
    method, body = call["method"], call["body"]
    if method == "pause":
        held = body
    if method == "resume":
        held = None
    if method == "state":
        if how == "deaf":
            continue
        seen = {"connected": how != "apart", "reason": f"held: {held}"}
        send(kind="reply", id=call["id"], body=seen)
    elif method == "logs" and how == "start":
        send(kind="start", version=1, settings=start["settings"], hold=None)
    elif method == "logs" and how == "long":
        parent.sendall(b"x" * 300_000)
    elif method == "logs" and how == "strange":
        send(kind="reply", id=99, body="nobody asked")
        send(kind="failure", id=98, code="not_found", message="nobody asked")
        event = {"sync": "s", "phase": "apply", "what": "entered", "replica": "", "detail": ""}
        send(kind="happened", id=97, event=event)
        send(kind="happened", id=call["id"], event=event)
        send(kind="reply", id=call["id"], body="fine")
        send(kind="reply", id=call["id"], body="twice")
    elif method == "logs" and how == "fails":
        send(kind="failure", id=call["id"], code="not_found", message="there is no job")
    elif method == "logs" and how == "lives":
        os._exit(3)
    else:
        send(kind="reply", id=call["id"], body={**ANSWERS, "echo": body}.get(method))
"""


@asynccontextmanager
async def started(how: str = "well", hold: str | None = None, pause: float = 0.01) -> AsyncIterator[SupervisedBridge]:
    command = (sys.executable, "-I", "-S", "-c", CHILD, how)
    bridge = SupervisedBridge(SETTINGS, command, first_pause=pause)
    await bridge.open(hold)
    try:
        async with asyncio.timeout(20):
            while bridge._writer is None:
                await asyncio.sleep(0.005)
            yield bridge
    finally:
        await bridge.close()


async def test_every_call_is_answered_with_what_the_child_says() -> None:
    async with started() as bridge:
        request = JobRequest("j1", "grpo", {"run": "r"})
        job = await bridge.submit(request)
        assert job == JobAnswer(job="j1", kind="grpo", status="running", submitted=5.0, parameters={"run": "r"})
        assert [one.job for one in await bridge.jobs()] == ["j1", "j2"]
        assert (await bridge.job("j1")).status == "failed"
        assert (await bridge.stop("j1")).status == "stopped"
        assert await bridge.logs("j1") == "step 1"
        assert (await bridge.check(CheckRequest())).version == "v1"
        assert bridge.pid is not None
    assert bridge.pid is None


async def test_calls_that_overlap_get_their_own_answers() -> None:
    async with started() as bridge:
        found = await asyncio.gather(bridge.logs("a"), bridge.job("b"), bridge.jobs(), bridge.state())
        assert (found[0], found[1].status, len(found[2]), found[3].connected) == ("step 1", "failed", 2, True)


async def test_a_hold_is_the_childs_from_its_start_on_and_the_next_ones_too() -> None:
    async with started("lives", hold="maintenance") as bridge:
        assert (await bridge.state()).reason == "held: maintenance"
        await bridge.pause("drift")
        assert (await bridge.state()).reason == "held: drift"
        assert (await killed(bridge)).reason == "held: drift"
        await bridge.resume()
        assert (await killed(bridge)).reason == "held: None"


async def killed(bridge: SupervisedBridge) -> ClusterState:
    """The state as the next child tells it, after this one died over a call."""
    with pytest.raises(RayUnavailableError) as refused:
        await bridge.logs("j1")
    assert str(refused.value) == (
        "the bridge to Ray ended (code 3) before it answered logs; it is being started again, and finishes or rolls "
        "back what was under way"
    )
    while not (state := await bridge.state()).connected:
        await asyncio.sleep(0.005)
    return state


async def test_why_the_cluster_is_apart_is_said_of_every_call_while_there_is_no_child() -> None:
    bridge = SupervisedBridge(SETTINGS)
    assert await bridge.state() == ClusterState(connected=False, reason="the bridge is starting")
    async with started("apart") as bridge:
        assert (await bridge.state()).reason == "held: None"
    with pytest.raises(RayUnavailableError, match="held: None"):
        await bridge.logs("j1")


async def test_a_state_that_does_not_come_is_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "STATE_SECONDS", 0.05)
    async with started("deaf") as bridge:
        assert await bridge.state() == ClusterState(connected=False, reason="the bridge did not answer within 0.05 s")
        assert await bridge.logs("j1") == "step 1", "what comes late disturbs nobody"


async def test_answers_that_nobody_waits_for_are_passed_over() -> None:
    async with started("strange") as bridge:
        assert await bridge.logs("j1") == "fine"
        assert await bridge.state() == ClusterState(connected=True, reason="held: None")


async def test_an_error_has_its_class() -> None:
    async with started("fails") as bridge:
        with pytest.raises(NotFoundError, match="there is no job"):
            await bridge.logs("j1")


@pytest.mark.parametrize(
    ("how", "says"), [("start", "a bridge does not send start"), ("long", "a line of over 100000 bytes")]
)
async def test_a_child_that_says_what_no_bridge_says_is_ended_and_the_reason_told(
    monkeypatch: pytest.MonkeyPatch, how: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "MAX_LINE", 100_000)
    monkeypatch.setattr(supervisor, "EXIT_SECONDS", 0.05)
    async with started(how, pause=5.0) as bridge:
        with pytest.raises(RayUnavailableError, match="before it answered logs"):
            await bridge.logs("j1")
        while "the bridge failed" not in (reason := (await bridge.state()).reason):
            await asyncio.sleep(0)
        assert says in reason
    assert says in caplog.text


STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(60)
"""


async def test_a_child_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "EXIT_SECONDS", 0.02)
    for cancelled in (False, True):
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(sys.executable, "-I", "-S", "-c", STUBBORN, stdout=pipe)
        assert child.stdout is not None
        await child.stdout.readline()
        if cancelled:
            monkeypatch.setattr(supervisor, "EXIT_SECONDS", 60.0)
            ending = asyncio.create_task(supervisor._ended(child))
            await asyncio.sleep(0)
            ending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await ending
            assert child.returncode == -9
        else:
            assert await supervisor._ended(child) == -9


async def test_starts_are_further_and_further_apart_until_a_bridge_has_lived_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The wait is half a second at first, twice as long each time, 15 s at most; half a second after 30 s of life."""
    now, lives, pauses = [0.0], [1.0] * 6 + [29.9, 30.0, 1.0], []
    bridge = SupervisedBridge(SETTINGS)

    async def live() -> None:
        now[0] += lives.pop(0)
        if len(lives) % 2:
            raise OSError("no process can be started")

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if not lives:
            raise asyncio.CancelledError

    monkeypatch.setattr(bridge, "_live", live)
    monkeypatch.setattr(supervisor, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    fake: Any = types.SimpleNamespace(sleep=sleep)
    monkeypatch.setattr(supervisor, "asyncio", fake)
    with pytest.raises(asyncio.CancelledError):
        await bridge._supervise()
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 0.5, 1.0]


async def test_a_request_for_a_sync_is_handed_on_whole() -> None:
    heard: list[Any] = []
    async with started("well") as bridge:
        with pytest.raises(Exception, match="no "):  # the child has no result for it
            await bridge.sync(SyncRequest(sync="s"), heard.append)
    assert heard == []


@pytest.mark.parametrize(
    ("stopped", "looks"),
    [
        ([None, 0.5, 1.5, 2.5, 3.5, 4.9, 5.0], 7),
        ([4.9, None, 4.9, 6.0], 4),
        ([5.5], 1),
    ],
)
async def test_a_bridge_that_is_stopped_for_five_seconds_is_killed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stopped: list[float | None], looks: int
) -> None:
    """Every second somebody looks for how long it has been stopped; None: it runs."""
    sleeps: list[float] = []
    killed: list[bool] = []

    class Clock:
        def __init__(self, pid: int) -> None:
            assert pid == 4711

        def seconds(self) -> float | None:
            return stopped.pop(0)

    async def sleep(seconds: float) -> None:
        sleeps.append(seconds)

    process: Any = types.SimpleNamespace(pid=4711, kill=lambda: killed.append(True))
    fake: Any = types.SimpleNamespace(sleep=sleep)
    monkeypatch.setattr(supervisor, "StopClock", Clock)
    monkeypatch.setattr(supervisor, "asyncio", fake)
    bridge = SupervisedBridge(SETTINGS)
    await bridge._end_stopped(process)
    assert (sleeps, killed, stopped) == ([1.0] * looks, [True], [])
    assert "the bridge to Ray (process 4711) was stopped (SIGSTOP or frozen), and killed" in caplog.text


async def test_a_bridge_that_cannot_be_started_is_tried_again_and_the_reason_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bridge = SupervisedBridge(SETTINGS, ("/nowhere/bridge",), first_pause=0.001)
    await bridge.open(None)
    try:
        async with asyncio.timeout(20):
            while caplog.text.count("the bridge failed") < 3:
                await asyncio.sleep(0.001)
        seen = await bridge.state()
        assert (seen.connected, bridge.pid) == (False, None)
        assert seen.reason.startswith("the bridge failed: [Errno 2] No such file or directory")
    finally:
        await bridge.close()
