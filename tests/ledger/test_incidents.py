"""An incident in the ledger is one row from its first sign to its end; on SQLite and on PostgreSQL."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from omni_rl.consistency.incidents import Figure, GoodStep
from omni_rl.consistency.need import Need
from omni_rl.errors import ConflictError, NotFoundError
from omni_rl.ledger.database import Database
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.migrations import upgrade
from omni_rl.ledger.run_list import Wanted
from omni_rl.ledger.types import IncidentEnd, NewIncident, NewState, SortKeys, StepKey

from .steps import CONFIG, records, sealed

KEY = StepKey("run", 0, 7)
FIGURE = Figure("image", "gen_kl_error", 0.9, 0.4)
SEEN = NewIncident(
    2, "Step 7, image only.", "unknown", "masked", why="Why?", figure=FIGURE, excess=2.25, good=GoodStep(0, 6, "w6")
)


@pytest.fixture
def run(ledger: Ledger) -> Ledger:
    ledger.put_run("run", CONFIG).result()
    return ledger


def test_it_opens_with_its_step_and_is_read_as_it_was_seen(run: Ledger) -> None:
    sealed(run, KEY, records(), after=NewState({}, SortKeys(5), seen=(SEEN,), key=KEY))
    (found,) = run.incidents(still_open=True)
    assert (found.run, found.attempt, found.step, found.ended) == ("run", 0, 7, None)
    assert (found.figure, found.good, found.what) == (FIGURE, GoodStep(0, 6, "w6"), "Step 7, image only. Why?")
    assert [done.what for done in found.actions] == ["masked"]
    assert run.incident(found.id) == found
    with pytest.raises(NotFoundError, match="there is no incident 99"):
        run.incident(99)


def test_it_grows_by_a_worse_figure_and_by_a_cause_alone(run: Ledger) -> None:
    number = run.see_incident("run", SEEN).result()
    lost = Figure("video", "gen_kl_error", math.nan, 0.4)
    seen = [
        NewIncident(2, "no news", "unknown", "masked", why="Still?", figure=FIGURE, excess=3.0),
        NewIncident(3, "Step 9.", "unknown", "masked", figure=lost, excess=math.inf),
        NewIncident(3, "no news", "kernel", "masked", why="A kernel.", figure=FIGURE, excess=9.0),
        NewIncident(3, "no news", "router", "halted", why="Another.", figure=FIGURE, excess=9.0),
        NewIncident(2, "no news", "media_mismatch", "halted", why="It was looked for.", attributed=True),
    ]
    for one in seen:
        assert run.see_incident("run", one).result() == number
    found = run.incident(number)
    assert found.figure is not None
    assert math.isnan(found.figure.value)
    assert (found.severity, found.headline, found.cause) == (3, "Step 9.", "media_mismatch")
    assert found.why == "It was looked for."
    assert [done.what for done in found.actions] == ["masked", "halted"]
    assert [event.data["what"] for event in run.events()] == ["opened", "grew", "grew", "grew", "grew"]


@pytest.mark.parametrize(
    ("severity", "excess", "grown"), [(3, 2.25, True), (2, 2 * 2.25, True), (2, 1.2 * 2.25, False), (1, 1.0, False)]
)
def test_either_a_severity_or_an_excess_that_is_worse_makes_it_grow(
    run: Ledger, severity: int, excess: float, grown: bool
) -> None:
    number = run.see_incident("run", SEEN).result()
    run.see_incident("run", NewIncident(severity, "Step 8.", "unknown", figure=FIGURE, excess=excess)).result()
    found = run.incident(number)
    assert found.headline == ("Step 8." if grown else SEEN.headline)
    assert (found.severity, found.excess) == ((max(2, severity), max(2.25, excess)) if grown else (2, 2.25))


def test_another_run_kind_or_subject_is_another_incident(run: Ledger) -> None:
    of = [
        ("run", NewIncident(3, "a")),
        ("other", NewIncident(3, "a")),
        (None, NewIncident(3, "a", kind="engine")),
        (None, NewIncident(3, "a", kind="engine", subject="rollout-1")),
    ]
    numbers = [run.see_incident(name, new).result() for name, new in of]
    assert len(set(numbers)) == 4
    run.end_incidents(None, IncidentEnd("engine", "it answers", "rollout-1")).result()
    assert [one.id for one in run.incidents(still_open=True)] == numbers[2::-1]
    assert run.incident(numbers[3]).actions[-1].what == "it answers"
    assert [one.id for one in run.incidents(kind="engine")] == [numbers[3], numbers[2]]
    assert [one.id for one in run.incidents(kind=("drift", "engine"), limit=3)] == numbers[:0:-1]
    assert [one.id for one in run.incidents_since(0.0)] == numbers
    assert [one.id for one in run.incidents_since(math.inf)] == numbers[:3]


def test_the_worst_open_ones_come_first_and_none_is_left_out(run: Ledger) -> None:
    old = run.see_incident("run", SEEN).result()
    halted = run.see_incident("run", NewIncident(3, "It halts.", "unknown", kind="update", subject="a")).result()
    again = run.see_incident("run", NewIncident(2, "Another.", "unknown", kind="update", subject="b")).result()
    silent = [run.see_incident(f"run-{n}", NewIncident(2, "No step.", kind="silence")).result() for n in range(3)]
    away = run.see_incident(None, NewIncident(1, "No answer.", kind="engine")).result()
    taken = run.see_incident("other", NewIncident(2, "It is seen to.", "kernel", kind="update")).result()
    run.acknowledge(taken, "ann").result()
    over = run.see_incident("over", NewIncident(3, "It was wrong.", kind="update")).result()
    run.end_incident(over, "ended by ann").result()
    worst = run.incidents(still_open=True, worst_first=True)
    assert [one.id for one in worst] == [halted, taken, *silent[::-1], again, old, away]
    assert [one.id for one in run.incidents(still_open=True, worst_first=True, limit=1)] == [halted]
    severities = [
        ("run", "update", "unknown", False, 3),
        ("other", "update", "kernel", True, 2),
        *((f"run-{n}", "silence", None, False, 2) for n in (2, 1, 0)),
        ("run", "drift", "unknown", False, 2),
        (None, "engine", None, False, 1),
    ]
    assert run.open_severities(100) == severities
    assert run.open_severities(2) == severities[:2]
    assert run.runs_with_open("update") == ["run", "other"]


def test_the_end_of_one_kind_leaves_the_others_of_its_run_open(run: Ledger) -> None:
    drift = run.see_incident("run", SEEN).result()
    silence = run.see_incident("run", NewIncident(2, "No step came.", kind="silence")).result()
    run.end_incidents("run", IncidentEnd("silence", "a step came")).result()
    assert [one.id for one in run.incidents(still_open=True)] == [drift]
    assert run.incident(silence).actions[-1].what == "a step came"


def test_one_person_has_it_and_it_takes_notes_when_it_is_over(run: Ledger) -> None:
    number = run.see_incident("run", SEEN).result()
    assert run.acknowledge(number, "ann").result() == run.acknowledge(number, "ann").result()
    with pytest.raises(ConflictError, match="ann has incident"):
        run.acknowledge(number, "bob").result()
    ended = run.end_incident(number, "mended").result()
    assert run.end_incident(number, "again").result() == ended
    assert [note.text for note in run.add_note(number, "bob", "a driver").result().notes] == ["a driver"]
    other = run.see_incident("run", SEEN).result()
    assert other != number
    run.end_incident(other, "mended").result()
    with pytest.raises(ConflictError, match="is over"):
        run.acknowledge(other, "bob").result()


def test_it_takes_so_many_notes(run: Ledger) -> None:
    number = run.see_incident("run", SEEN).result()
    for note in range(256):
        run.add_note(number, "ann", f"note {note}")
    with pytest.raises(ConflictError, match=f"incident {number} has 256 notes"):
        run.add_note(number, "ann", "one more").result()
    assert len(run.incident(number).notes) == 256


def test_it_keeps_the_newest_actions(run: Ledger) -> None:
    number = run.see_incident("run", SEEN).result()
    for action in range(300):
        run.see_incident("run", replace(SEEN, action=f"action {action}"))
    run.end_incident(number, "mended").result()
    done = [action.what for action in run.incident(number).actions]
    assert (len(done), done[0], done[-2:]) == (256, "action 45", ["action 299", "mended"])


def test_alarms_of_an_older_ledger_are_incidents(ledger_url: str) -> None:
    old = Database(ledger_url)
    upgrade(old, "r0005")
    drift = {"severity": 3, "gate": "halted", "pursuit": "nothing", "activity": "live"}
    with old.write() as connection:
        connection.execute(
            sa.text("INSERT INTO runs (run, created, config, state) VALUES ('run', 1.0, '{}', :state)"),
            {"state": json.dumps(drift)},
        )
        connection.execute(sa.text("INSERT INTO attempts (id, run, attempt, started) VALUES (1, 'run', 2, 1.0)"))
        connection.execute(
            sa.text(
                "INSERT INTO steps (attempt_id, step, sealed, digest, severity, samples, tokens, weight_version, "
                "verdict, training) VALUES (1, 3, 5.0, '', 3, 1, 9, '', '{}', '{}')"
            )
        )
        for number, closed in ((4, 9.0), (5, None)):
            connection.execute(
                sa.text(
                    "INSERT INTO alarms (id, run, attempt, step, opened, closed, severity, cause, sentence, action, "
                    "evidence) VALUES (:id, 'run', 2, 3, 6.0, :closed, 3, 'kernel', 'It parts.', 'done', '{}')"
                ),
                {"id": number, "closed": closed},
            )
    old.close()
    with Ledger.open(ledger_url) as ledger:
        newest, oldest = ledger.incidents()
        assert (newest.id, newest.ended, newest.what, newest.cause) == (5, None, "It parts.", "kernel")
        assert (oldest.id, oldest.ended, [done.what for done in oldest.actions]) == (4, 9.0, ["done"])
        ((found,), total) = ledger.listed(Wanted(order="need"))
        assert (total, found.need, found.run.latest, found.run.sealed) == (1, Need.HALTED, StepKey("run", 2, 3), 5.0)
        assert ledger.see_incident("run", NewIncident(3, "another", kind="silence")).result() == 6
        assert [run.run for run in ledger.to_remember(0)] == ["run"]


def test_an_export_has_them(run: Ledger, tmp_path: Any) -> None:
    import pyarrow.parquet as pq

    from omni_rl.ledger.export import export

    number = run.see_incident("run", SEEN, KEY).result()
    run.see_incident("other", SEEN).result()
    (path,) = (path for path in export(run, "run", tmp_path) if path.stem == "incidents")
    (row,) = pq.read_table(path).to_pylist()
    assert (row["id"], row["step"], row["cause"]) == (number, 7, "unknown")
    assert json.loads(row["figure"])["value"] == 0.9


def test_runs_are_listed_the_newest_first_or_those_that_need_a_person(run: Ledger) -> None:
    run.put_run("later", CONFIG).result()
    run.see_incident("run", SEEN).result()
    assert [one.run.run for one in run.listed(Wanted(order="newest"))[0]] == ["later", "run"]
    assert [one.run.run for one in run.listed(Wanted(order="need"))[0]] == ["run", "later"]
