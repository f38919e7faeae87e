"""Runs are searched, filtered and sorted by how much they need a person; on SQLite and on PostgreSQL."""

from typing import Any

import pytest
import sqlalchemy as sa

from omni_rl.consistency.need import Need
from omni_rl.errors import NotFoundError
from omni_rl.ledger import run_list
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.run_list import Wanted
from omni_rl.ledger.tables import runs
from omni_rl.ledger.types import NewIncident, NewState, SortKeys, StepKey

from .steps import records, sealed

CALM = {"gate": "open", "pursuit": "nothing", "severity": 0}


def add(ledger: Ledger, run: str, need: int = 1, created: float = 0.0, state: Any = None, **keys: float) -> None:
    ledger.put_run(run, {"model": run})
    ledger.put_state(run, NewState(state, SortKeys(need, **keys)))
    began = sa.update(runs).where(runs.c.run == run).values(created=created)
    ledger.writer.submit(lambda connection: connection.execute(began).close()).result()


def see(ledger: Ledger, run: str | None, severity: int, subject: str = "") -> int:
    return ledger.see_incident(run, NewIncident(severity, "It is seen.", kind="engine", subject=subject)).result()


def names(ledger: Ledger, **wanted: Any) -> list[str]:
    return [one.run.run for one in ledger.listed(Wanted(**wanted))[0]]


def test_the_newest_come_first_and_of_one_moment_the_last_by_name(ledger: Ledger) -> None:
    for run, created in {"a": 2.0, "b": 3.0, "c": 3.0, "d": 1.0}.items():
        add(ledger, run, created=created)
    assert names(ledger) == ["c", "b", "a", "d"]
    found, total = ledger.listed(Wanted(offset=1, limit=2))
    assert ([one.run.run for one in found], total) == (["b", "a"], 4)
    assert ledger.listed(Wanted(offset=4)) == ([], 4)
    assert [run.run for run in ledger.to_remember(100)] == ["d", "a", "b", "c"]
    with ledger.database.read() as connection:
        assert run_list.newest(connection, 3) == ["a", "b", "c"]


def test_a_page_has_a_hundred_runs_where_no_other_number_is_asked_for(ledger: Ledger) -> None:
    with ledger.database.write() as connection:
        rows = [{"run": f"run-{number:03}", "created": float(number), "config": {}} for number in range(101)]
        connection.execute(sa.insert(runs), rows)
    found, total = ledger.listed(Wanted())
    assert (len(found), found[0].run.run, found[-1].run.run, total) == (100, "run-100", "run-001", 101)


def test_of_those_that_need_a_person_alike_the_one_that_was_sealed_last_comes_first(ledger: Ledger) -> None:
    add(ledger, "fine", Need.OK, created=9.0, sealed=9.0)
    add(ledger, "halted", Need.HALTED)
    add(ledger, "early", Need.MASK, created=8.0, sealed=5.0)
    add(ledger, "late", Need.MASK, sealed=7.0)
    add(ledger, "never", Need.MASK, created=3.0)
    add(ledger, "never, newer", Need.MASK, created=4.0)
    assert names(ledger, order="need") == ["halted", "late", "early", "never, newer", "never", "fine"]
    assert names(ledger, order="need", offset=1, limit=2) == ["late", "early"]


def test_a_search_finds_a_part_of_a_name_as_it_is_written(ledger: Ledger) -> None:
    for run in ("Math-1", "math_2", "maths", "100%", "other"):
        add(ledger, run, Need.MASK if run == "maths" else Need.OK)
    assert sorted(names(ledger, search="mATH")) == ["Math-1", "math_2", "maths"]
    assert names(ledger, search="th_") == ["math_2"], "no character stands for another"
    assert names(ledger, search="%") == ["100%"]
    found, total = ledger.listed(Wanted(search="math", needs=(Need.MASK, Need.HALTED)))
    assert ([one.run.run for one in found], total) == (["maths"], 1)
    assert ledger.listed(Wanted(search="math", limit=1))[1] == 3
    assert ledger.listed(Wanted(search="physics")) == ([], 0)


# A run's own need, the severity of its open incident, its need, and its need where its cluster cannot be seen.
NEEDS = [
    (Need.ENDED, None, Need.ENDED, Need.ENDED),
    (Need.ENDED, 1, Need.WARN, Need.WARN),
    (Need.OK, None, Need.OK, Need.UNKNOWN),
    (Need.OK, 0, Need.OK, Need.UNKNOWN),
    (Need.OK, 1, Need.WARN, Need.UNKNOWN),
    (Need.OK, 2, Need.MASK, Need.UNKNOWN),
    (Need.OK, 3, Need.PAUSE, Need.PAUSE),
    (Need.WAITING, None, Need.WAITING, Need.UNKNOWN),
    (Need.UNJUDGED, 1, Need.WARN, Need.UNKNOWN),
    (Need.WARN, 1, Need.WARN, Need.UNKNOWN),
    (Need.WARN, 2, Need.MASK, Need.UNKNOWN),
    (Need.MASK, 1, Need.MASK, Need.UNKNOWN),
    (Need.MASK, 3, Need.PAUSE, Need.PAUSE),
    (Need.UNKNOWN, 2, Need.UNKNOWN, Need.UNKNOWN),
    (Need.UNKNOWN, 3, Need.PAUSE, Need.PAUSE),
    (Need.SILENT, None, Need.SILENT, Need.SILENT),
    (Need.SILENT, 2, Need.SILENT, Need.SILENT),
    (Need.SILENT, 3, Need.PAUSE, Need.PAUSE),
    (Need.PAUSE, 1, Need.PAUSE, Need.PAUSE),
    (Need.HALTED, None, Need.HALTED, Need.HALTED),
    (Need.HALTED, 3, Need.HALTED, Need.HALTED),
]


def test_a_run_needs_what_is_most_urgent_of_it_its_incidents_and_its_cluster(ledger: Ledger) -> None:
    wanted = {}
    for number, (own, severity, seen, unseen) in enumerate(NEEDS):
        run = f"run-{number:02}"
        add(ledger, run, own)
        if severity is not None:
            see(ledger, run, severity)
        wanted[run] = seen, unseen
    for which, hidden in enumerate(((), tuple(wanted))):
        needs = {run: both[which] for run, both in wanted.items()}
        found = ledger.listed(Wanted(unseen=hidden, limit=len(needs)))[0]
        assert {one.run.run: one.need for one in found} == needs
        assert {run: ledger.one_listed(run, hidden).need for run in needs} == needs
        counts = {need: list(needs.values()).count(need) for need in sorted(set(needs.values()), reverse=True)}
        assert list(ledger.needs(hidden).items()) == list(counts.items()), "the most urgent first"
        for need in Need:
            of = names(ledger, needs=(need,), unseen=hidden)
            assert sorted(of) == [run for run, its in needs.items() if its is need]
    assert ledger.one_listed("run-02", ["run-01", "run-03"]).need is Need.OK, "it can be seen"


def test_a_run_is_listed_with_the_newest_of_its_worst_open_incidents(ledger: Ledger) -> None:
    for run in ("run", "other", "over"):
        add(ledger, run)
    see(ledger, "run", 2, "a")
    newest = see(ledger, "run", 2, "b")
    see(ledger, "run", 1, "c")
    see(ledger, None, 3)
    ended = see(ledger, "run", 3, "d")
    ledger.end_incident(ended, "it answers").result()
    ledger.end_incident(see(ledger, "over", 3), "it answers").result()
    found = {one.run.run: one for one in ledger.listed(Wanted())[0]}
    assert {run: one.incident and one.incident.id for run, one in found.items()} == {
        "run": newest,
        "other": None,
        "over": None,
    }
    assert {run: one.need for run, one in found.items()} == {"run": Need.MASK, "other": Need.OK, "over": Need.OK}
    assert [ledger.one_listed(run) for run in found] == list(found.values())
    assert ledger.needs() == {Need.MASK: 1, Need.OK: 2}
    with pytest.raises(NotFoundError, match="there is no run none"):
        ledger.one_listed("none")


def test_a_listed_run_says_its_latest_step_as_its_policy_or_else_its_steps_do(ledger: Ledger) -> None:
    add(ledger, "judged", state={**CALM, "line": {"attempt": 2, "step": 0, "sealed": 4.5}})
    add(ledger, "waiting", state={**CALM, "line": {"attempt": 0, "step": None, "sealed": None}})
    add(ledger, "older", state=CALM)
    add(ledger, "brought in")
    for run in ("older", "brought in"):
        sealed(ledger, StepKey(run, 1, 3), records(rows=1))
    found = {one.run.run: one.run for one in ledger.listed(Wanted())[0]}
    assert (found["judged"].latest, found["judged"].sealed) == (StepKey("judged", 2, 0), 4.5)
    assert (found["waiting"].latest, found["waiting"].sealed) == (None, None)
    assert found["judged"].config == {"model": "judged"}
    assert found["judged"].state["line"]["step"] == 0
    for run in ("older", "brought in"):
        assert found[run] == ledger.run(run)
        assert found[run].latest == StepKey(run, 1, 3)


def test_runs_are_overdue_from_the_moment_after_they_are_due_the_longest_first(ledger: Ledger) -> None:
    for run, due in {"a": 5.0, "b": 3.0, "c": 7.0}.items():
        add(ledger, run, due=due)
    add(ledger, "never")
    assert ledger.overdue(7.0, 10) == ["b", "a"]
    assert ledger.overdue(7.5, 10) == ["b", "a", "c"]
    assert ledger.overdue(7.5, 1) == ["b"]
    assert ledger.overdue(3.0, 10) == []


def test_what_is_remembered_are_the_newest_runs_and_those_where_something_is_under_way(ledger: Ledger) -> None:
    add(ledger, "stopped", Need.PAUSE, 8.0, {**CALM, "gate": "paused"})
    add(ledger, "pursued", Need.WARN, 2.0, {**CALM, "pursuit": "asked"})
    add(ledger, "masked", Need.MASK, 2.0, {**CALM, "severity": 2})
    add(ledger, "warned", Need.WARN, 1.0, {**CALM, "severity": 1})
    add(ledger, "silent", Need.SILENT, 1.0, CALM)
    add(ledger, "brought in", Need.PAUSE, 1.0)
    add(ledger, "fine", Need.OK, 1.0, CALM)
    add(ledger, "new", Need.OK, 4.0, CALM)
    add(ledger, "newest", Need.OK, 9.0)
    assert [run.run for run in ledger.to_remember(0)] == ["masked", "pursued", "stopped"]
    assert [run.run for run in ledger.to_remember(3)] == ["masked", "pursued", "new", "stopped", "newest"]
