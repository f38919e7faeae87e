"""Incidents of updates: which one explains a step, what a person's end of one means, and several at once."""

from typing import Any

import pytest
import torch
from omni_rl_services.coordinator.live_updates import OpenFault

from omni_rl.agent.faults import UpdateFault
from omni_rl.consistency.actions import Cause
from omni_rl.ledger.types import NewIncident
from tests.services.conftest import Served
from tests.services.update_calls import (
    NORM,
    Q,
    alarms,
    announce,
    live,
    make_run,
    receipt,
    tell,
    trained,
    wrong,
)

pytestmark = pytest.mark.anyio


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


async def test_a_fault_that_goes_on_after_a_person_ended_its_incident_opens_another(served: Served) -> None:
    await make_run(served)
    await announce(served, 1, trained(1))
    await tell(served, 1, receipt(trained(1), of=1))
    await announce(served, 2, trained(2))
    await tell(served, 2, receipt(trained(1), trained(1), of=2))
    (first,) = (await served.http.get("/v1/incidents")).json()
    await served.http.post(f"/v1/incidents/{first['incident']}/end")
    assert await alarms(served) == []
    await announce(served, 3, trained(3))
    await tell(served, 3, receipt(trained(1), trained(1), of=3))
    (second,) = (await served.http.get("/v1/incidents?open=true")).json()
    assert (second["kind"], second["cause"]) == ("update", "stale_weights")
    assert second["incident"] != first["incident"]
