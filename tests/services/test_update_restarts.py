"""What a coordinator that is started again knows of a trainer's earlier starts, and of engines that are gone."""

import asyncio

import pytest
from omni_rl_services.coordinator import updates as service

from omni_rl.agent.judging import GONE
from tests.services.conftest import Serve, Served
from tests.services.update_calls import NORM, alarms, announce, fail, make_run, receipt, seal, tell, trained, wrong

pytestmark = pytest.mark.anyio


async def test_an_engine_of_a_trainers_earlier_start_is_not_accused_after_a_restart(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer's new start has announced so often that none of the announcements before it is stored."""
    monkeypatch.setattr(service, "QUIET_SECONDS", 0.0)
    async with serve() as served:
        await make_run(served)
        await announce(served, 1, trained(1), session="a")
        await tell(served, 1, receipt(trained(1), of=1), "old")
        for number in range(1, 8):
            await announce(served, number, trained(10 + number), session="b")
            changed = receipt(trained(10 + number), trained(9 + number), of=number, session="t")
            await tell(served, number, changed, "new")
        await seal(served)
        assert await wrong(served) == []
    async with serve() as served:
        await announce(served, 8, trained(18), session="b")
        await tell(served, 8, receipt(trained(18), trained(17), of=8, session="t"), "new")
        await seal(served)
        assert await wrong(served) == []


async def test_an_engine_that_stopped_reporting_within_the_trainers_start_is_accused_after_a_restart(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "QUIET_SECONDS", 0.0)
    async with serve() as served:
        await make_run(served)
        await announce(served, 1, trained(1), session="a")
        await tell(served, 1, receipt(trained(1), of=1), "e0")
        for number in range(2, 8):
            await announce(served, number, trained(number), session="a")
    async with serve() as served:
        await announce(served, 8, trained(8), session="a")
        await seal(served)
        (sentence,) = await wrong(served)
        assert sentence.startswith("engine e0 has confirmed update 1, and the trainer is at update 8")


@pytest.mark.parametrize(("since", "known"), [(GONE, {"e0", "e1"}), (GONE + 1, {"e0", "e1"}), (GONE + 2, {"e1"})])
async def test_reports_of_engines_that_are_gone_are_not_read_again(serve: Serve, since: int, known: set[str]) -> None:
    async with serve() as served:
        await make_run(served)
        await announce(served, 0, trained(0))
        await tell(served, 0, receipt(trained(0), of=0), "e0")
        for number in range(1, since + 1):
            await announce(served, number, trained(number))
            await tell(served, number, receipt(trained(number), trained(number - 1), of=number), "e1")
    async with serve() as served:
        live = await served.coordinator.updates._live(await served.coordinator.run("trl"))
        assert set(live.of.engines) == known


async def test_a_fault_that_the_ledger_did_not_take_at_an_announcement_is_recorded_later(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "SETTLE_SECONDS", 0.01)
    monkeypatch.setattr(service, "RECORD_SECONDS", 0.01)
    await make_run(served)
    await announce(served, 1, trained(1))
    await tell(served, 1, receipt(trained(1), of=1))
    broken = {**trained(2), f"model.{NORM}": trained(1)[f"model.{NORM}"]}
    await tell(served, 2, receipt(broken, trained(1), of=2))
    fail(served, monkeypatch, "change_update", 2)
    with pytest.raises(AssertionError, match="ledger_failed"):
        await announce(served, 2, trained(2))
    async with asyncio.timeout(10):
        while not (found := await alarms(served)):
            await asyncio.sleep(0.01)
    assert found == [f"update 2: {NORM} is that of update 1"]
