"""What is known of updates after a coordinator or a trainer was started again, and of engines that are gone."""

from typing import Any

import pytest
from omni_rl_services.coordinator import updates as service

from omni_rl.agent.judging import GONE
from omni_rl.ledger.types import NewIncident
from tests.services.conftest import Serve, Served
from tests.services.update_calls import (
    STALE,
    alarms,
    announce,
    ended,
    go_stale,
    live,
    make_run,
    receipt,
    seal,
    tell,
    trained,
    wrong,
)

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


async def test_a_coordinator_that_is_started_again_knows_the_newest_updates(serve: Serve) -> None:
    async with serve() as served:
        await make_run(served)
        await announce(served, 1, trained(1))
        await tell(served, 1, receipt(trained(1), of=1))
    async with serve() as served:
        await announce(served, 2, trained(2))
        found = await tell(served, 2, receipt(trained(1), trained(1), of=2))
        assert found["findings"][0]["sentence"] == "update 2 changed 0 of 3 tensors: the engine holds update 1"


async def test_what_an_earlier_coordinator_told_of_ends_with_a_right_update(serve: Serve) -> None:
    async with serve() as served:
        await go_stale(served, "e0", "e1")
        assert await wrong(served) == [f"{STALE}, in 2 of 2 engines"]
    async with serve() as served:
        # Nothing came since: the step's cause is known all the same.
        verdict = await seal(served)
        assert verdict["cause"] == "stale_weights"
        assert verdict["evidence"][0]["sentence"] == f"{STALE}, in 2 of 2 engines"
        await announce(served, 3, trained(3))
        await tell(served, 3, receipt(trained(3), trained(1), of=3), "e0")
        assert await wrong(served) == [f"{STALE}, in 2 of 2 engines"]
    async with serve() as served:
        await tell(served, 3, receipt(trained(3), trained(1), of=3), "e1")
        await announce(served, 4, trained(4))
        await tell(served, 4, receipt(trained(4), trained(3), of=4), "e0")
        assert await wrong(served) == []
        assert await ended(served) == ["a later update was right"]


async def test_what_was_told_of_before_many_other_faults_is_known_after_a_restart(serve: Serve) -> None:
    async with serve() as served:
        await go_stale(served, "e0")
        await make_run(served, run="other")
        store = served.coordinator.store
        (stale,) = await store.incidents(run="trl", kind="update")
        for number in range(101):
            seen = NewIncident(2, "stale", stale.cause, evidence=stale.evidence, kind="update", subject=f"{number}")
            await store.see_incident("other", seen)
    async with serve() as served:
        assert (await seal(served))["cause"] == "stale_weights"


async def test_an_engine_may_be_as_far_behind_after_a_restart_as_the_run_declares(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "QUIET_SECONDS", 0.0)
    async with serve() as served:
        await make_run(served, lag=8)
        for number in range(1, 17):
            await announce(served, number, trained(number))
            if number > 8:
                await tell(served, number, receipt(trained(number - 8), of=number - 8))
    async with serve() as served:
        await announce(served, 17, trained(17))
        await tell(served, 17, receipt(trained(9), trained(8), of=9))
        await seal(served)
        assert await wrong(served) == []


async def test_a_trainer_that_is_started_again_numbers_its_updates_anew(served: Served) -> None:
    await make_run(served)
    for number in (1, 2):
        await announce(served, number, trained(number), session="a")
        await tell(served, number, receipt(trained(number), of=number))
    await announce(served, 1, trained(7), session="b")
    found = await tell(served, 0, receipt(trained(7), of=1, session="t"))
    assert (found["of"], found["equal"], found["findings"]) == (1, 3, [])
    assert await alarms(served) == []


async def test_engines_of_a_trainers_earlier_start_are_accused_while_no_other_has_told_of_an_update(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "QUIET_SECONDS", 0.0)
    await go_stale(served, "old")
    await announce(served, 1, trained(7), session="b")
    assert await wrong(served) == []
    assert await ended(served) == ["the trainer was started again, and its engines are judged anew"]
    await seal(served)
    (sentence,) = await wrong(served)
    assert sentence.startswith("engine old has confirmed no update, and the trainer is at update 1")
    await tell(served, 1, receipt(trained(7), of=1, session="t"), "new")
    await announce(served, 2, trained(8), session="b")
    await tell(served, 2, receipt(trained(8), trained(7), of=2, session="t"), "new")
    await seal(served)
    assert await wrong(served) == []
    assert (await ended(served))[0] == "the engine that had it is taken for gone"


async def test_what_is_wrong_with_an_engine_that_is_gone_ends(served: Served) -> None:
    await go_stale(served, "e0")
    for number in range(3, 3 + 16):
        await announce(served, number, trained(number))
        await tell(served, number, receipt(trained(number), trained(number - 1), of=number), "e1")
        assert len(await wrong(served)) == 1
    await announce(served, 19, trained(19))
    assert await wrong(served) == []
    assert await ended(served) == ["the engine that had it is taken for gone"]


async def test_an_update_whose_content_was_dropped_is_passed_over_after_a_restart(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve() as served:
        await make_run(served)
        await announce(served, 1, trained(1))
        await tell(served, 1, receipt(trained(1), of=1))
    async with serve() as served:

        async def gone(key: Any) -> None:
            return None

        monkeypatch.setattr(served.coordinator.store, "told_update", gone)
        known = await live(served)
        assert (known.of.announced, known.keys, known.arrived, known.heard) == ({}, {}, {}, {})
