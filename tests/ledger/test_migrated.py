"""A ledger of an older version says, once it is opened, what a new one would say; on SQLite and on PostgreSQL."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from numpy.testing import assert_array_equal

from omni_rl.api.incidents import ActionAnswer
from omni_rl.consistency.need import Need
from omni_rl.ledger import timeline
from omni_rl.ledger.database import Database
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.migrations import upgrade
from omni_rl.ledger.migrations.versions import r0001_ledger
from omni_rl.ledger.run_list import Wanted
from omni_rl.ledger.tables import checks, events, incidents, syncs, transitions, updates
from omni_rl.ledger.tables import timeline as buckets
from omni_rl.ledger.types import NewIncident, StepKey
from omni_rl.ledger.updates import NewUpdate, StoredReport, UpdateKey
from omni_rl_bench.history import rebuild


@contextmanager
def older(url: str, revision: str) -> Iterator[sa.Connection]:
    """A write to a ledger of an older version."""
    old = Database(url)
    upgrade(old, revision)
    with old.write() as connection:
        yield connection
    old.close()


def insert(connection: sa.Connection, table: str, *rows: dict[str, Any]) -> None:
    names = ", ".join(rows[0])
    marks = ", ".join(f":{name}" for name in rows[0])
    connection.execute(sa.text(f"INSERT INTO {table} ({names}) VALUES ({marks})"), list(rows))


def step(attempt_id: int, number: int, severity: int, sealed: float = 1.0) -> dict[str, Any]:
    row = {"attempt_id": attempt_id, "step": number, "sealed": sealed, "severity": severity, "digest": ""}
    return row | {"samples": 1, "tokens": 9, "weight_version": "", "verdict": "{}", "training": "{}"}


def test_charts_of_the_first_schema_are_those_that_its_steps_make_now(ledger_url: str) -> None:
    """At every width, of every kind and attempt, with steps that have no tokens or logprobs that are no numbers."""
    numbers = [0, 3, 4, 15, 16, 63, 64, 255, 256, 1023, 1024, 4095, 4096, 65_536, 262_144, 1_048_576, 9_999_999]
    values = np.random.default_rng(0).normal(size=(2, 2, len(numbers))).tolist()
    with older(ledger_url, "r0001") as connection:
        insert(connection, "runs", {"run": "run", "created": 1.0, "config": "{}"})
        for attempt in (0, 1):
            insert(connection, "attempts", {"id": attempt + 1, "run": "run", "attempt": attempt, "started": 1.0})
            insert(connection, "steps", *(step(attempt + 1, number, number % 4) for number in numbers))
            for of_kind, kind in enumerate(("overall", "image")):
                rows = []
                for at, number in enumerate(numbers):
                    figures = dict.fromkeys(r0001_ledger.FIGURES, values[attempt][of_kind][at])
                    figures |= dict.fromkeys(r0001_ledger.INTEGERS, at % 3)
                    figures |= {"logprob_abs_diff_mean": None} if at % 2 else {}
                    rows.append({"attempt_id": attempt + 1, "kind": kind, "step": number} | figures)
                insert(connection, "figures", *rows)
    query = sa.select(buckets).order_by(*buckets.primary_key)
    with Ledger.open(ledger_url) as ledger:
        with ledger.database.read() as connection:
            migrated = [tuple(row) for row in connection.execute(query)]
        with ledger.database.write() as connection:
            for attempt_id in (2, 1):  # each leaves the other as it is
                rebuild(connection, attempt_id)
        with ledger.database.read() as connection:
            rebuilt = [tuple(row) for row in connection.execute(query)]
    assert [row[:7] for row in migrated] == [row[:7] for row in rebuilt]
    assert_array_equal(np.array([row[7:] for row in migrated], float), np.array([row[7:] for row in rebuilt], float))
    assert {row[2] for row in migrated} == set(timeline.WIDTHS)
    whole = [row for row in migrated if row[:3] == (1, "overall", timeline.WIDTHS[-1])]
    assert sum(row[4] for row in whole) == len(numbers)
    assert sum(row[6] for row in whole) == sum(at % 2 == 1 and at % 3 > 0 for at in range(len(numbers)))


# The severity of a run's newest step, its policy's state, and what it needs.
PLACES: list[tuple[int, dict[str, Any] | None, Need]] = [
    (0, None, Need.OK),
    (3, None, Need.OK),
    (-1, None, Need.UNJUDGED),
    (0, {"severity": 0}, Need.OK),
    (0, {"severity": -1}, Need.OK),
    (-1, {"severity": -1}, Need.UNJUDGED),
    (-1, {"severity": 1}, Need.WARN),
    (0, {"severity": 1}, Need.WARN),
    (1, {"severity": 2}, Need.MASK),
    (0, {"severity": 3}, Need.PAUSE),
    (0, {"severity": 0, "gate": "halted"}, Need.HALTED),
    (0, {"severity": 3, "gate": "paused"}, Need.PAUSE),
    (0, {"severity": 0, "activity": "silent"}, Need.SILENT),
    (0, {"severity": 2, "activity": "silent"}, Need.SILENT),
    (0, {"severity": 3, "activity": "silent"}, Need.PAUSE),
    (0, {"severity": 0, "activity": "ended"}, Need.ENDED),
    (-1, {"severity": 0, "activity": "ended"}, Need.ENDED),
    (0, {"severity": 1, "activity": "ended"}, Need.WARN),
    (0, {"severity": 0, "activity": "live"}, Need.OK),
]


def test_runs_of_an_older_ledger_stand_where_their_policies_left_them(ledger_url: str) -> None:
    with older(ledger_url, "r0005") as connection:
        for number, (severity, state, _) in enumerate(PLACES):
            kept = None if state is None else json.dumps(state)
            insert(connection, "runs", {"run": f"r{number:02}", "created": number, "config": "{}", "state": kept})
            for attempt, steps in ((2, (5,)), (3, (0, 7)), (4, ())):
                identity = 10 * number + attempt
                where = {"id": identity, "run": f"r{number:02}", "attempt": attempt, "started": 1.0}
                insert(connection, "attempts", where)
                for one in steps:
                    insert(connection, "steps", step(identity, one, severity if one == 7 else 3, sealed=one + 0.5))
        insert(connection, "runs", {"run": "waiting", "created": 99.0, "config": "{}", "state": '{"severity": 3}'})
    with Ledger.open(ledger_url) as ledger:
        found = {one.run.run: one for one in ledger.listed(Wanted())[0]}
        waiting = found.pop("waiting")
        assert (waiting.need, waiting.run.latest, waiting.run.state) == (Need.WAITING, None, {"severity": 3})
        assert {run: one.need for run, one in found.items()} == {
            f"r{number:02}": need for number, (_, _, need) in enumerate(PLACES)
        }
        for number, (run, listed) in enumerate(sorted(found.items())):
            assert (listed.run.latest, listed.run.sealed) == (StepKey(run, 3, 7), 7.5)
            line = {"attempt": 3, "step": 7, "sealed": 7.5}
            state = PLACES[number][1]
            assert listed.run.state == (None if state is None else {**state, "line": line})
        assert ledger.overdue(math.inf, 9) == [], "nobody knows when their next steps are due"


def test_alarms_of_an_older_ledger_say_when_they_ended_and_what_was_done(ledger_url: str) -> None:
    alarm = {"run": "run", "attempt": 2, "step": 0, "severity": 3, "cause": None, "sentence": "It parts."}
    alarm |= {"evidence": '{"weights": {}}'}
    with older(ledger_url, "r0005") as connection:
        insert(connection, "runs", {"run": "run", "created": 1.0, "config": "{}"})
        insert(
            connection,
            "alarms",
            alarm | {"id": 3, "opened": 6.0, "closed": 9.0, "action": "masked"},
            alarm | {"id": 7, "opened": 7.0, "closed": None, "action": "halted"},
            alarm | {"id": 8, "opened": 8.0, "closed": None, "action": "", "step": None},
        )
    with Ledger.open(ledger_url) as ledger:
        update, opened, ended = ledger.incidents(run="run")
        assert (ended.id, ended.opened, ended.changed, ended.ended) == (3, 6.0, 9.0, 9.0)
        assert ended.actions == (ActionAnswer(at=9.0, what="masked"),)
        assert (opened.id, opened.opened, opened.changed, opened.ended) == (7, 7.0, 7.0, None)
        assert opened.actions == (ActionAnswer(at=7.0, what="halted"),)
        assert (update.id, update.actions, update.step, update.kind) == (8, (), None, "update")
        assert (opened.attempt, opened.step, opened.kind, opened.severity) == (2, 0, "drift", 3)
        assert (opened.headline, opened.what, opened.cause) == ("It parts.", "It parts.", None)
        assert (opened.evidence, opened.subject, opened.notes, opened.told) == ({"weights": {}}, "", (), {})
        assert (opened.figure, opened.good, opened.acknowledged, opened.excess) == (None, None, None, 0.0)
        assert [event.kind for event in ledger.events()] == [], "nobody is told again"


@pytest.mark.parametrize("alarms", [0, 1])
def test_the_first_incident_after_the_alarms_of_an_older_ledger_has_the_next_number(
    ledger_url: str, alarms: int
) -> None:
    with older(ledger_url, "r0005") as connection:
        insert(connection, "runs", {"run": "run", "created": 1.0, "config": "{}"})
        row = {"id": 5, "run": "run", "attempt": 2, "step": 0, "severity": 3, "cause": None, "sentence": "It parts."}
        row |= {"evidence": "{}", "opened": 1.0, "action": ""}
        if alarms:
            insert(connection, "alarms", row)
    with Ledger.open(ledger_url) as ledger:
        assert ledger.see_incident("run", NewIncident(1, "a", kind="engine")).result() == (6 if alarms else 1)


def given(ledger: Ledger) -> list[int]:
    """Write one of everything that has a number, and return the numbers."""
    ledger.put_update(NewUpdate(UpdateKey("run", "", "session", 1, 0), StoredReport.of(b"{}"), {})).result()
    with ledger.database.write() as connection:
        sync = {"run": "run", "sync": "s", "epoch": 1, "slab": "", "version": "", "mode": "", "started": 0.0}
        happened = {"sync": "s", "at": 0.0, "phase": "", "what": "", "detail": ""}
        numbers = [
            connection.execute(sa.insert(syncs).values(sync).returning(syncs.c.number)).scalar_one(),
            connection.execute(sa.insert(transitions).values(happened).returning(transitions.c.id)).scalar_one(),
            connection.execute(sa.select(updates.c.id)).scalar_one(),
        ]
    numbers += [
        ledger.see_incident("run", NewIncident(1, "a")).result(),
        ledger.add_check({"severity": "ok"}).result().id,
    ]
    return [*numbers, ledger.last_event()]


def test_no_number_is_given_twice(ledger_url: str) -> None:
    """Whoever follows events by number, or has a link to an incident, never gets another's."""
    with Ledger.open(ledger_url) as ledger:
        ledger.put_run("run", {}).result()
        first = given(ledger)
        with ledger.database.write() as connection:
            for table in (events, incidents, checks, updates, syncs, transitions):
                connection.execute(sa.delete(table))
        assert all(one > other for one, other in zip(given(ledger), first, strict=True))
