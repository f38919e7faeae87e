"""When an engine's silence is a fault, which fault explains a step, and what an earlier coordinator's ledger lacks."""

import asyncio
import threading
from typing import Any

import pytest
import torch
from omni_rl_services.coordinator import updates as service
from omni_rl_services.coordinator.live_updates import OpenFault

from omni_rl.agent.faults import UpdateFault
from omni_rl.consistency.actions import Cause
from omni_rl.errors import TakenOverError
from omni_rl.ledger.types import NewIncident
from omni_rl.ledger.updates import NewUpdate
from tests.services.conftest import Serve, Served
from tests.services.update_calls import (
    NORM,
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
        await seal(served)
        assert len(await wrong(served)) == 1, "told once"


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


def fault(cause: Cause, sentence: str, parts: int = 1) -> UpdateFault:
    return UpdateFault(cause, sentence, tuple(f"p{number}" for number in range(parts)), sentence)


@pytest.mark.parametrize("cause", [Cause.STALE_WEIGHTS, Cause.CORRUPT_WEIGHTS])
async def test_of_several_faults_one_of_weights_explains_a_step_and_names_eight_parts(
    served: Served, cause: Cause
) -> None:
    await make_run(served)
    await announce(served, 1, trained(1))
    await tell(served, 1, receipt(trained(1), of=1))
    known, run = await live(served), await served.coordinator.run("trl")
    assert await served.coordinator.updates.before_seal(run) is None
    for one in (
        fault(Cause.STALE_CACHE, "a cache"),
        fault(cause, "weights", 9),
        fault(Cause.STALE_CACHE, "another cache"),
    ):
        known.open[one.key] = OpenFault(one, 1, {"e0"})
        found = await served.coordinator.updates.before_seal(run)
    assert found is not None
    assert (found.cause, found.sentence, len(found.tensors)) == (cause, "weights", 8)
    assert (str(found.check), found.result) == ("weights", "explains")


async def test_a_run_without_updates_has_nothing_to_say_of_its_steps(served: Served) -> None:
    await make_run(served)
    assert await served.coordinator.updates.before_seal(await served.coordinator.run("trl")) is None


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

    broken = {**trained(1), "model.norm.weight": trained(2)["model.norm.weight"]}
    await tell(served, 1, receipt(broken, at=1.5))
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
    broken = {**trained(1), "model.norm.weight": trained(2)["model.norm.weight"]}
    await tell(served, 1, receipt(broken, at=1.5))
    waiting = set(served.coordinator.updates._later)
    await tell(served, 2, receipt(trained(1), at=1.6))
    async with asyncio.timeout(10):
        await asyncio.gather(*waiting)
    assert await alarms(served) == []


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


@pytest.mark.parametrize(("size", "aside"), [(0, False), (64 << 10, False), ((64 << 10) + 1, True)])
async def test_more_than_64_kib_are_looked_through_in_a_thread_of_their_own(
    served: Served, size: int, aside: bool
) -> None:
    thread = await served.coordinator.updates._workers.run(size, threading.get_ident)
    assert (thread != threading.get_ident()) is aside


async def test_updates_are_listed_the_newest_first_and_one_for_all_workers(served: Served) -> None:
    await make_run(served)
    for update in (1, 2):
        await announce(served, update, trained(update))
        for number in (0, 1):
            await tell(served, update, share(trained(update), number, of=update))
    found = (await served.http.get("/v1/runs/trl/updates")).json()
    assert [(one["engine"], one["number"]) for one in found] == [("e0", 2), (None, 2), ("e0", 1), (None, 1)]
    assert [one["reported"] for one in found if one["engine"]] == [2, 2]
    assert len((await served.http.get("/v1/runs/trl/updates?limit=1")).json()) == 1
    events = [one for one in (await served.http.get("/v1/events/page")).json() if one["kind"] == "update"]
    assert {one["run"] for one in events} == {"trl"}
    assert [one["data"] for one in events if one["data"]["number"] == 2][-1] == {"engine": "e0", "number": 2, "of": 2}
    assert (await served.http.get("/v1/runs/none/updates")).status_code == 404


@pytest.mark.parametrize("ended", [0, 1])
async def test_of_two_faults_the_one_that_no_person_ended_ends_with_a_right_update(served: Served, ended: int) -> None:
    await make_run(served)
    await announce(served, 1, trained(1))
    await tell(served, 1, receipt(trained(1), of=1))
    await announce(served, 2, trained(2))
    kept = {f"model.{Q}": trained(1)[f"model.{Q}"], f"model.{NORM}": torch.zeros(4)}
    await tell(served, 2, receipt({**trained(2), **kept}, trained(1), of=2))
    assert len(await wrong(served)) == 2
    numbers = sorted(one["incident"] for one in (await served.http.get("/v1/incidents?open=true")).json())
    await served.http.post(f"/v1/incidents/{numbers[ended]}/end")
    assert len((await live(served)).open) == 1
    await announce(served, 3, trained(3))
    await tell(served, 3, receipt(trained(3), trained(1), of=3))
    assert await wrong(served) == []
    found = (await served.http.get("/v1/incidents")).json()
    assert sorted(one["actions"][-1]["what"] for one in found) == ["a later update was right", "ended by local"]


async def test_ending_an_incident_of_another_kind_or_run_forgets_no_fault(served: Served) -> None:
    await make_run(served)
    for number in (1, 2):
        await announce(served, number, trained(number))
        await tell(served, number, receipt(trained(1), trained(1), of=number))
    known, store = (await live(served)).open, served.coordinator.store
    assert len(known) == 1
    others = (("trl", "sync"), ("other", "update"), (None, "engine"))
    for run, kind in others:
        seen: Any = NewIncident(2, "Something else.", kind=kind)  # type: ignore[arg-type]
        number = await store.see_incident(run, seen)
        assert (await served.http.post(f"/v1/incidents/{number}/end")).status_code == 200
        assert list((await live(served)).open) == list(known)
