"""After how long an engine's silence is a fault, and what is judged a little later."""

import asyncio

import pytest
from omni_rl_services.coordinator import updates as service

from omni_rl.consistency.actions import Cause
from omni_rl.errors import TakenOverError
from omni_rl.ledger.updates import NewUpdate
from tests.services.conftest import Served
from tests.services.update_calls import (
    NORM,
    K,
    Q,
    alarms,
    announce,
    live,
    make_run,
    receipt,
    seal,
    share,
    tell,
    trained,
    wrong,
)

pytestmark = pytest.mark.anyio
HALF = {**trained(1), f"model.{NORM}": trained(2)[f"model.{NORM}"]}
"""Weights of update 1 but for one tensor."""


@pytest.mark.parametrize(
    ("arrived", "heard", "silent"),
    [(1.5, 1.5, False), (2.5, 2.5, True), (1.5, 2.5, False), (60.0, 60.0, True)],
)
async def test_silence_about_an_update_is_a_fault_after_two_seconds(
    served: Served, arrived: float, heard: float, silent: bool
) -> None:
    """`arrived` and `heard` are the seconds since the update was announced, and since the engine was heard of last."""
    await make_run(served)
    await announce(served, 1, trained(1))
    await tell(served, 1, receipt(trained(1), of=1))
    await announce(served, 2, trained(2))
    known, run = await live(served), await served.coordinator.run("trl")
    now = asyncio.get_running_loop().time()
    known.arrived[2], known.heard["e0"] = now - arrived, now - heard
    found = await served.coordinator.updates.before_seal(run)
    assert (found is not None and found.cause is Cause.STALE_WEIGHTS) is silent
    assert bool(await wrong(served)) is silent
    if silent:
        verdict = await seal(served)
        sentence = "engine e0 has confirmed update 1, and the trainer is at update 2: the run declares no lag"
        assert (verdict["cause"], verdict["evidence"][0]["sentence"]) == ("stale_weights", sentence)
        assert sentence in await alarms(served)
        assert await wrong(served) == [sentence], "told once"


@pytest.mark.parametrize(("quiet", "told"), [(1.5, False), (2.5, True)])
async def test_a_worker_that_was_passed_by_is_known_after_two_seconds_of_its_engines_quiet(
    served: Served, quiet: float, told: bool
) -> None:
    await make_run(served)
    await announce(served, 1, trained(1))
    for number in (0, 1):
        await tell(served, 1, share(trained(1), number, of=1))
    await announce(served, 2, trained(2))
    await tell(served, 4, share(trained(2), 0, of=2))
    known, run = await live(served), await served.coordinator.run("trl")
    now = asyncio.get_running_loop().time()
    known.arrived[2], known.heard["e0"] = now - 3.0, now - quiet
    await served.coordinator.updates.before_seal(run)
    found = await wrong(served)
    assert any("worker 1 of 2 has not taken" in one for one in found) is told


async def test_what_waits_ends_where_another_coordinator_is_at_work(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "SETTLE_SECONDS", 0.01)
    await make_run(served)
    await announce(served, 1, trained(1), at=1.0)
    tries = []

    async def failing(new: NewUpdate) -> list[int]:
        tries.append(new)
        raise TakenOverError("another coordinator is at work")

    await tell(served, 1, receipt(HALF, at=1.5))
    (waiting,) = served.coordinator.updates._later
    monkeypatch.setattr(served.coordinator.store, "change_update", failing)
    async with asyncio.timeout(10):
        await waiting
    assert len(tries) == 1
    assert await alarms(served) == []


async def test_an_engine_that_told_of_another_update_meanwhile_is_not_judged_twice(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "SETTLE_SECONDS", 0.01)
    await make_run(served)
    await announce(served, 1, trained(1), at=1.0)
    await tell(served, 1, receipt(HALF, at=1.5))
    waiting = set(served.coordinator.updates._later)
    await tell(served, 2, receipt(trained(1), at=1.6))
    async with asyncio.timeout(10):
        await asyncio.gather(*waiting)
    assert await alarms(served) == []


async def test_an_engine_that_does_not_say_which_update_it_took_is_told_of_a_little_later(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "SETTLE_SECONDS", 0.05)
    await make_run(served)
    await announce(served, 1, trained(1), at=1.0)
    broken = {**trained(1), f"model.{Q}": trained(1)[f"model.{K}"], f"model.{K}": trained(1)[f"model.{Q}"]}
    await tell(served, 1, receipt(broken, at=1.5))
    assert await alarms(served) == []
    while not await alarms(served):
        await asyncio.sleep(0.01)
    assert await alarms(served) == [f"update 1: {Q} and {K} are swapped"]
