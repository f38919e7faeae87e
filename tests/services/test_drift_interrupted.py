"""A search for a step's cause, and what is done about it, over restarts and while the ledger or the cluster is away."""

import asyncio

import pytest
from omni_rl_services.coordinator import core, responder

from omni_rl.consistency.actions import Cause
from omni_rl.errors import LedgerError
from omni_rl.ledger.types import NewState, NewStep, Stored
from tests.services.conftest import Serve, Served
from tests.services.fake_bridge import FakeBridge
from tests.services.posted import DRIFTED, GATED, post, rest, seal

pytestmark = pytest.mark.anyio


async def begin_pursuit(served: Served, bridge: FakeBridge) -> None:
    """Post a step that drifted, and return once its run's pursuit has asked the bridge for the first sync."""
    await served.http.post("/v1/runs", json=GATED)
    await post(served, DRIFTED)
    await seal(served)
    async with asyncio.timeout(10):
        while bridge.requests == []:
            await asyncio.sleep(0.01)


async def test_a_pursuit_goes_on_after_a_restart(serve: Serve) -> None:
    bridge = FakeBridge(cause=Cause.STALE_WEIGHTS)
    bridge.go.clear()
    async with serve(bridge) as served:
        await begin_pursuit(served, bridge)
    assert not bridge.open_gate
    bridge.go.set()
    async with serve(bridge) as served:
        run = await rest(served)
        assert (run["drift"]["gate"], run["drift"]["severity"]) == ("open", "ok")
    assert bridge.open_gate


async def test_a_seal_whose_acknowledgement_was_lost_is_acted_on_when_it_comes_again(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = served.coordinator.store
    write, failures = store.seal, [LedgerError("the connection to the database was lost")]

    async def failing(step: NewStep) -> Stored:
        stored = await write(step)
        if failures:
            raise failures.pop()
        return stored

    monkeypatch.setattr(store, "seal", failing)
    served.bridge.cause = Cause.MEDIA_MISMATCH
    await served.http.post("/v1/runs", json=GATED)
    await post(served, DRIFTED)
    lost = await served.http.post("/v1/runs/digits/attempts/1/steps/12/seal", json={})
    assert (lost.status_code, served.bridge.open_gate) == (503, True)
    verdict = await seal(served)
    assert (verdict["severity"], verdict["drift"]["gate"]) == ("pause", "paused")
    assert not served.bridge.open_gate
    run = await rest(served)
    assert (run["step"], run["drift"]["gate"], run["drift"]["cause"]) == (12, "halted", "media_mismatch")
    calls = list(served.bridge.calls)
    assert await seal(served) == verdict
    assert served.bridge.calls == calls, "once"


async def test_a_pursuit_goes_on_once_the_ledger_can_be_written_again(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = served.coordinator.store
    write, failures = store.put_state, [LedgerError("the disk is full"), LedgerError("the disk is full")]

    async def failing(run: str, state: NewState) -> None:
        if failures:
            raise failures.pop()
        await write(run, state)

    monkeypatch.setattr(responder, "RECORD_SECONDS", 0.01)
    monkeypatch.setattr(store, "put_state", failing)
    served.bridge.cause = Cause.STALE_WEIGHTS
    await served.http.post("/v1/runs", json=GATED)
    await post(served, DRIFTED)
    await seal(served)
    run = await rest(served)
    assert (run["drift"]["gate"], run["drift"]["severity"], failures) == ("open", "ok", [])
    assert served.bridge.calls == ["pause", "check", "sync", "check", "resume"]


@pytest.mark.parametrize("resumed", [False, True])
async def test_a_pursuit_waits_after_a_restart_until_the_cluster_is_connected(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, resumed: bool
) -> None:
    monkeypatch.setattr(core, "WATCH_SECONDS", 0.05)
    bridge = FakeBridge(cause=Cause.STALE_WEIGHTS)
    bridge.go.clear()
    async with serve(bridge) as served:
        await begin_pursuit(served, bridge)
    bridge.go.set()
    bridge.down = "the bridge is starting"
    async with serve(bridge) as served:
        if resumed:
            await served.http.post("/v1/resume", json={"run": "digits"})
        await asyncio.sleep(0.5)
        bridge.down = None
        run = await rest(served)
        assert (run["drift"]["gate"], run["drift"]["severity"]) == ("open", "ok")
        assert len(bridge.requests) == (1 if resumed else 2), "a run that was resumed is left alone"
    assert bridge.open_gate


async def test_without_ray_a_drifted_run_stays_paused_and_halts(serve: Serve) -> None:
    bridge = FakeBridge(down="the head of Ray is gone")
    async with serve(bridge) as served:
        await served.http.post("/v1/runs", json=GATED)
        await post(served, DRIFTED)
        assert (await seal(served))["drift"]["gate"] == "paused"
        run = await rest(served)
        assert run["drift"]["gate"] == "halted"
        gate = (await served.http.get("/v1/state")).json()["gate"]
        assert (gate["gate"], gate["confirmed"]) == ("closed", False)
        # When the cluster is back it is told.
        bridge.down = None
        async with asyncio.timeout(10):
            while bridge.open_gate:
                await asyncio.sleep(0.05)
