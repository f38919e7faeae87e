"""What the ledger drops, and when: at the bound that was asked for or by default; on SQLite and on PostgreSQL."""

import pytest
import sqlalchemy as sa

from omni_rl.errors import NotFoundError
from omni_rl.ledger import changes
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.tables import checks, payloads
from omni_rl.ledger.types import StepKey

from .steps import CONFIG, post, records, sealed


def steps_with(ledger: Ledger, table: sa.Table) -> list[int]:
    with ledger.database.read() as connection:
        return list(connection.execute(sa.select(table.c.step).distinct().order_by(table.c.step)).scalars())


@pytest.mark.parametrize(("payload_steps", "left"), [(1, [9]), (2, [5, 9]), (3, [4, 5, 9])])
def test_the_newest_sealed_steps_have_their_records_still(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, payload_steps: int, left: list[int]
) -> None:
    monkeypatch.setattr(changes, "PAYLOAD_STEPS", payload_steps)
    ledger.put_run("run", CONFIG).result()
    others = [StepKey("run", attempt, step) for attempt in (0, 2) for step in (3, 7, 8)]
    for key in others[:3]:
        sealed(ledger, key, records(rows=1))
    post(ledger, StepKey("run", 1, 3), records(rows=1))  # a step that is not sealed waits
    for key in others[3:]:
        sealed(ledger, key, records(rows=1))
    there = [key for key in others if any(part.size for part in ledger.parts(key))]
    for step in (2, 4, 5, 9):
        sealed(ledger, StepKey("run", 1, step), records(rows=1), records(rows=1, rank=1))
    post(ledger, StepKey("run", 1, 1), records(rows=1))
    with_records = [step for step in range(10) if any(part.size for part in ledger.parts(StepKey("run", 1, step)))]
    assert with_records == sorted([1, 3, *left])
    assert [key for key in others if any(part.size for part in ledger.parts(key))] == there
    assert [step for step in range(10) if ledger.parts(StepKey("run", 1, step))] == [1, 2, 3, 4, 5, 9]
    with pytest.raises(NotFoundError, match="step 2 of run, attempt 1 was sealed long ago: its records are gone"):
        ledger.records(StepKey("run", 1, 2))


def test_an_older_step_that_is_sealed_late_drops_no_newer_one(ledger: Ledger) -> None:
    ledger.put_run("run", CONFIG).result()
    for step in (5, 6, 2):
        sealed(ledger, StepKey("run", 0, step), records(rows=1))
    assert steps_with(ledger, payloads) == [5, 6]


def test_a_thousand_steps_later_the_samples_of_a_step_that_was_ok_go(ledger: Ledger) -> None:
    ledger.put_run("run", CONFIG).result()
    old, others = (0, 1, 3, 4, 5), [StepKey("run", attempt, step) for attempt in (0, 2) for step in (0, 3, 4)]
    for key in others[:3]:
        sealed(ledger, key, records(rows=1))
    for step, severity in zip(old, (0, 0, 1, -1, 0), strict=True):
        sealed(ledger, StepKey("run", 1, step), records(rows=1), severity=severity)
    for key in others[3:]:
        sealed(ledger, key, records(rows=1))
    sealed(ledger, StepKey("run", 1, 999), records(rows=1))
    assert all(ledger.step(StepKey("run", 1, step)).samples for step in (*old, 999))
    for step in (1000, 1003, 1004, 1005):
        sealed(ledger, StepKey("run", 1, step), records(rows=1))
    left = [step for step in old if ledger.step(StepKey("run", 1, step)).samples]
    assert left == [1, 3, 4], "no step 1001 was sealed, with which the first would have gone"
    assert all(ledger.step(key).samples for key in others), "other attempts'"


@pytest.mark.parametrize(
    ("found", "dropped"),
    [
        ({"severity": "ok"}, True),
        ({"severity": "ok", "cause": None}, True),
        ({"severity": "ok", "cause": "kernel"}, False),
        ({"severity": "warn", "cause": None}, False),
        ({}, False),
    ],
)
def test_a_check_that_found_nothing_goes_when_a_thousand_newer_ones_are_there(
    ledger: Ledger, found: dict[str, str | None], dropped: bool
) -> None:
    first = ledger.add_check(found).result()
    with ledger.database.write() as connection:
        connection.execute(sa.insert(checks), [{"at": 1.0, "found": {"severity": "warn"}} for _ in range(998)])
    newest = ledger.add_check({"severity": "ok"}).result()
    assert ledger.check(first.id) == first
    later = ledger.add_check({"severity": "ok"}).result()
    left = {check.id for check in ledger.checks(limit=2000)}
    assert (first.id in left, newest.id in left, later.id in left) == (not dropped, True, True)
    assert len(left) == 1001 - dropped


def test_no_check_that_found_nothing_stays_where_none_shall(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "NEWER_CHECKS", 0)
    first = ledger.add_check({"severity": "ok"}).result()
    second = ledger.add_check({"severity": "pause"}).result()
    assert second.id > first.id, "its number is never another's"
    assert ledger.checks() == [second]
