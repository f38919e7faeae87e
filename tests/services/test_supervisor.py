"""The coordinator's end of the bridge, with a real child process that has no Ray."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from omni_rl_services.coordinator.supervisor import SupervisedBridge

from omni_rl.bridge.seam import CheckRequest, ClusterState, SyncRequest
from omni_rl.bridge.settings import ClusterSettings
from omni_rl.errors import NotFoundError, RayUnavailableError
from omni_rl.processes import life
from omni_rl.sync.states import Phase, SyncEvent

SETTINGS = ClusterSettings(
    address="127.0.0.1:1", dashboard="http://127.0.0.1:2", run="r", model=Path("/m"), ledger="sqlite:///l"
)
Start = Callable[..., AbstractAsyncContextManager[SupervisedBridge]]
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def started(how: str = "well", hold: str | None = None) -> AsyncIterator[SupervisedBridge]:
    command = (sys.executable, "-m", "tests.bridge.child", how)
    bridge = SupervisedBridge(SETTINGS, command, first_pause=0.01, stopped_seconds=0.2)
    await bridge.open(hold)
    try:
        yield bridge
    finally:
        await bridge.close()


async def connected(bridge: SupervisedBridge) -> ClusterState:
    while not (state := await bridge.state()).connected:
        await asyncio.sleep(0.01)
    return state


async def test_a_sync_is_followed_and_answered() -> None:
    heard: list[SyncEvent] = []
    async with started() as bridge:
        await connected(bridge)
        result = await bridge.sync(SyncRequest(sync="s1"), heard.append)
    assert (result.sync, result.version) == ("s1", "r/1/1/d")
    assert heard == [SyncEvent("s1", Phase.APPLY, "entered")]


async def test_an_error_of_the_child_is_raised_here() -> None:
    async with started() as bridge:
        await connected(bridge)
        with pytest.raises(NotFoundError, match="there is no job 'grpo-1'"):
            await bridge.stop("grpo-1")


async def test_a_cluster_that_cannot_be_looked_at_is_not_connected() -> None:
    async with started("blind") as bridge:
        while "engines" not in (seen := await bridge.state()).reason:
            await asyncio.sleep(0.01)
        assert not seen.connected
        assert seen.reason == "state: AttributeError: no engines"


async def test_before_there_is_a_child_the_reason_is_said() -> None:
    bridge = SupervisedBridge(SETTINGS)
    assert not (await bridge.state()).connected
    with pytest.raises(RayUnavailableError, match="starting"):
        await bridge.jobs()


async def test_a_child_that_stays_stopped_is_ended_and_replaced() -> None:
    async with started(hold="maintenance") as bridge:
        await connected(bridge)
        stopped = bridge.pid
        assert stopped is not None
        os.kill(stopped, signal.SIGSTOP)
        with pytest.raises(RayUnavailableError, match=rf"process {stopped}\) was stopped .* killed before"):
            await bridge.sync(SyncRequest(sync="s1"), lambda event: None)
        assert (await connected(bridge)).gate == "closed"
        assert life(stopped) == "gone"


async def test_a_child_that_is_killed_is_replaced_and_the_hold_outlives_it() -> None:
    async with started(hold="maintenance") as bridge:
        before = await connected(bridge)
        assert before.gate == "closed"
        first = bridge.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        while bridge.pid in (first, None):
            await asyncio.sleep(0.01)
        after = await connected(bridge)
        assert (after.gate, after.reason) == ("closed", f"pid {bridge.pid}")
        await bridge.resume()
        assert bridge.pid is not None
        os.kill(bridge.pid, signal.SIGKILL)
        second = bridge.pid
        while bridge.pid in (second, None):
            await asyncio.sleep(0.01)
        assert (await connected(bridge)).gate == "open"


async def test_everybody_who_waits_for_a_child_that_dies_is_told() -> None:
    async with started("dies") as bridge:
        await connected(bridge)
        check = asyncio.create_task(bridge.check(CheckRequest()))
        await asyncio.sleep(0)
        with pytest.raises(RayUnavailableError, match=r"code 7.*sync.*finishes or rolls back"):
            await bridge.sync(SyncRequest(sync="s1"), lambda event: None)
        with pytest.raises(RayUnavailableError, match="check"):
            await check


async def test_a_child_that_speaks_something_else_is_ended() -> None:
    async with started("garbage") as bridge:
        while "no message" not in (await bridge.state()).reason:
            await asyncio.sleep(0.01)


async def test_closing_leaves_no_process() -> None:
    async with started() as bridge:
        await connected(bridge)
        pid = bridge.pid
    assert pid is not None
    assert life(pid) == "gone"


async def test_a_killed_coordinator_takes_its_bridge_along(tmp_path: Path) -> None:
    """The child is the real one: the next coordinator's could not take the run over while the old one lives."""
    code = f"""
import asyncio, pathlib
from omni_rl.bridge.settings import ClusterSettings
from omni_rl_services.coordinator.supervisor import SupervisedBridge
async def main():
    bridge = SupervisedBridge(ClusterSettings.model_validate_json({SETTINGS.model_dump_json()!r}))
    await bridge.open(None)
    while "no Ray head" not in (await bridge.state()).reason:
        await asyncio.sleep(0.01)
    pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(bridge.pid))
    await asyncio.sleep(3600)
asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        await asyncio.sleep(0.01)
    child = int((tmp_path / "pid").read_text())
    assert life(child) == "runs"
    parent.kill()
    await parent.wait()
    while life(child) != "gone":
        await asyncio.sleep(0.01)
