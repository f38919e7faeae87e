"""What becomes of updates and their faults while the ledger refuses to be written."""

import pytest
import torch
from omni_rl_services.coordinator import updates as service

from tests.services.conftest import Served
from tests.services.update_calls import (
    NORM,
    STALE,
    announce,
    announcement,
    ended,
    fail,
    first_alarms,
    go_stale,
    make_run,
    receipt,
    seal,
    tell,
    trained,
    wrong,
)

pytestmark = pytest.mark.anyio


async def test_a_fault_ends_with_a_right_update_that_the_ledger_takes_at_the_second_try(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    await go_stale(served, "e0")
    await announce(served, 3, trained(3))
    fail(served, monkeypatch, "put_update", 1)
    body = receipt(trained(3), trained(1), of=3)
    assert (await served.http.put("/v1/runs/trl/engines/e0/updates/3", json=body)).status_code == 503
    assert await wrong(served) == [STALE]
    await tell(served, 3, body)
    assert await wrong(served) == []
    assert await ended(served) == ["a later update was right"]


async def test_what_a_trainers_new_start_ends_is_over_once_the_ledger_takes_it(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    await go_stale(served, "e0")
    fail(served, monkeypatch, "put_update", 1)
    body = announcement(trained(7), session="b")
    assert (await served.http.put("/v1/runs/trl/updates/1", json=body)).status_code == 503
    await announce(served, 1, trained(7), session="b")
    assert await wrong(served) == []
    assert await ended(served) == ["the trainer was started again, and its engines are judged anew"]


async def test_a_fault_of_a_trainers_new_start_is_another_than_that_of_the_start_before(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger did not take the new start, so that its first fault comes before the old one's end was stored."""
    monkeypatch.setattr(service, "QUIET_SECONDS", 0.0)
    await make_run(served)
    await announce(served, 1, trained(1), session="a")
    await tell(served, 1, receipt(trained(1), of=1))
    await announce(served, 2, trained(2), session="a")
    await seal(served)
    assert len(await wrong(served)) == 1
    fail(served, monkeypatch, "put_update", 1)
    body = announcement(trained(7), session="b")
    assert (await served.http.put("/v1/runs/trl/updates/1", json=body)).status_code == 503
    await seal(served, 2)
    await announce(served, 1, trained(7), session="b")
    (sentence,) = await wrong(served)
    assert sentence.startswith("engine e0 has confirmed no update, and the trainer is at update 1")
    assert await ended(served) == ["the trainer was started again, and its engines are judged anew"]


async def test_what_is_told_of_a_little_later_is_told_once_the_ledger_takes_it(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "SETTLE_SECONDS", 0.05)
    monkeypatch.setattr(service, "RECORD_SECONDS", 0.01)
    await make_run(served)
    await announce(served, 1, trained(1), at=1.0)
    fail(served, monkeypatch, "change_update", 2)
    await tell(served, 1, receipt({**trained(1), f"model.{NORM}": torch.zeros(4)}, at=1.5))
    assert await first_alarms(served) == [f"update 1: {NORM} is zero in the engine and not in the trainer"]


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
    assert await first_alarms(served) == [f"update 2: {NORM} is that of update 1"]
