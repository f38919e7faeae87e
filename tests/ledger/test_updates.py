"""What the ledger keeps of updates of weights: every answer, and of the newest what it was made from."""

from typing import Any

import pytest
import sqlalchemy as sa

from omni_rl.errors import ConflictError
from omni_rl.ledger import updates
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.types import NewEvent, NewIncident
from omni_rl.ledger.updates import TOLD_KEPT, NewUpdate, StoredReport, UpdateKey


@pytest.fixture(autouse=True)
def _runs(ledger: Ledger) -> None:
    for run in ("math", "other"):
        ledger.put_run(run, {}).result()


def key(number: int, run: str = "math", worker: int = 0, engine: str = "engine-0") -> UpdateKey:
    return UpdateKey(run, engine, "session", number, worker)


def put(ledger: Ledger, of: UpdateKey, body: bytes = b"{}") -> None:
    ledger.put_update(NewUpdate(of, StoredReport.of(body), {"number": of.number})).result()


def test_the_newest_of_each_worker_keep_what_they_were_made_from(ledger: Ledger) -> None:
    others = [key(0, run="other"), key(0, worker=1), key(0, engine="engine-1")]
    for other in others:
        put(ledger, other, b"kept")
    for number in range(TOLD_KEPT + 2):
        put(ledger, key(number), b"told %d" % number)
    told = [ledger.told_update(key(number)) for number in range(TOLD_KEPT + 2)]
    assert told == [None, None, *(b"told %d" % number for number in range(2, TOLD_KEPT + 2))]
    assert [ledger.told_update(other) for other in others] == [b"kept"] * 3
    assert [kept.key for kept in ledger.remembered_updates("math")] == [
        *others[1:],
        *(key(number) for number in range(2, TOLD_KEPT + 2)),
    ]
    oldest = ledger.update(key(0))
    assert oldest is not None
    assert oldest.answer == {"number": 0}
    assert ledger.update(key(99)) is None
    assert [kept.key.number for kept in ledger.updates("math", limit=2)] == [TOLD_KEPT + 1, TOLD_KEPT]


def test_as_many_reports_of_the_trainer_stay_as_are_asked_for(ledger: Ledger) -> None:
    for number in range(9):
        put(ledger, key(number))
        body = StoredReport.of(b"told")
        ledger.put_update(NewUpdate(key(number, engine=""), body, {}, reports=TOLD_KEPT + 3)).result()
    told = [one.key for one in ledger.remembered_updates("math") if ledger.told_update(one.key) is not None]
    assert [one.number for one in told if one.engine == ""] == list(range(9 - TOLD_KEPT - 3, 9))
    assert [one.number for one in told if one.engine] == list(range(9 - TOLD_KEPT, 9)), "its own number for each"


def test_the_first_update_of_each_start_of_the_trainer_is_remembered_without_its_report(ledger: Ledger) -> None:
    for start in ("a", "b"):
        for number in range(TOLD_KEPT + 1):
            put(ledger, UpdateKey("math", "", start, number, 0))
    found = [(one.key.session, one.key.number) for one in ledger.remembered_updates("math")]
    assert found == [("a", 0), *(("b", number) for number in range(TOLD_KEPT + 1))]
    assert ledger.told_update(UpdateKey("math", "", "b", 0, 0)) is None


def test_an_engine_without_a_report_since_so_many_updates_of_the_trainer_keeps_none(ledger: Ledger) -> None:
    put(ledger, key(0, run="other"))
    put(ledger, key(0, engine="gone"))
    put(ledger, key(0, engine="quiet"))
    for number in range(4):
        if number == 1:
            put(ledger, key(1, engine="quiet"))
        new = NewUpdate(key(number, engine=""), StoredReport.of(b"{}"), {}, gone=3)
        ledger.put_update(new).result()
    reported = (key(0, engine="gone"), key(0, engine="quiet"), key(0, run="other"))
    kept = [ledger.told_update(one) for one in reported]
    assert kept == [None, b"{}", b"{}"], "the trainer's update 0 is three before its newest"


def test_a_run_keeps_its_newest_updates_whatever_another_does(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "ROWS_KEPT", 3)
    put(ledger, key(0, run="other"))
    for number in range(5):
        put(ledger, key(number))
    assert [kept.key.number for kept in ledger.updates("math")] == [4, 3, 2]
    assert [kept.key.number for kept in ledger.updates("other")] == [0]
    put(ledger, key(1, run="other"))
    put(ledger, key(2, run="other"))
    put(ledger, key(5))
    assert [kept.key.number for kept in ledger.updates("math")] == [5, 4, 3]
    assert [kept.key.number for kept in ledger.updates("other")] == [2, 1, 0]


def test_the_same_update_is_kept_once_and_another_under_its_key_is_refused(ledger: Ledger) -> None:
    for _ in range(2):
        put(ledger, key(1), b"one")
    with pytest.raises(ConflictError, match="update 1 of worker 0 was told of with other content"):
        put(ledger, key(1), b"another")
    assert len(ledger.updates("math")) == 1
    assert ledger.told_update(key(1)) == b"one"


def test_an_update_comes_with_its_incidents(ledger: Ledger) -> None:
    seen = NewIncident(2, "An update reached nothing.", kind="sync")
    new = NewUpdate(key(2), StoredReport.of(b"{}"), {"number": 2}, seen=[seen])
    (number,) = ledger.put_update(new).result()
    over = NewUpdate(key(2), None, {"number": 2, "healed": True}, over={number: "it arrived"})
    assert ledger.change_update(over).result() == []
    assert ledger.incident(number).ended is not None


def test_an_update_that_is_put_again_takes_the_new_answer_and_other_keys_are_left_alone(ledger: Ledger) -> None:
    others = [key(1, run="other"), key(1, worker=1), key(1, engine="engine-1"), key(2)]
    for one in (key(1), *others):
        put(ledger, one)
    events = (NewEvent("update", {"n": 1}, "math"),)
    again = NewUpdate(key(1), StoredReport.of(b"{}"), {"late": True}, events=events)
    assert ledger.put_update(again).result() == []
    assert [kept.answer for kept in ledger.updates("math")] == [
        {"number": 2},
        {"number": 1},
        {"number": 1},
        {"late": True},
    ]
    assert [(event.kind, event.run, event.data) for event in ledger.events()] == [("update", "math", {"n": 1})]
    assert [one.digest for one in ledger.updates("other")] == [StoredReport.of(b"{}").digest]
    session = UpdateKey("math", "engine-0", "another", 1, 0)
    put(ledger, session, b"another start's first")
    assert ledger.told_update(session) == b"another start's first"


def test_an_update_that_cannot_be_put_leaves_nothing_of_what_comes_with_it(ledger: Ledger) -> None:
    put(ledger, key(1), b"one")
    seen, events = [NewIncident(2, "It reached nothing.", kind="sync")], (NewEvent("update", {}, "math"),)
    refused = NewUpdate(key(1), StoredReport.of(b"two"), {"late": True}, seen=seen, events=events)
    with pytest.raises(ConflictError):
        ledger.put_update(refused).result()
    assert (ledger.incidents(), ledger.events()) == ([], [])
    (kept,) = ledger.updates("math")
    assert kept.answer == {"number": 1}


@pytest.mark.parametrize(("asked", "left"), [({"reports": 1}, 1), ({"reports": 2}, 2), ({}, 4)])
def test_no_more_reports_stay_than_are_asked_for(ledger: Ledger, asked: dict[str, Any], left: int) -> None:
    for number in range(6):
        body = StoredReport.of(b"%d" % number)
        ledger.put_update(NewUpdate(key(number), body, {}, **asked)).result()
    assert [kept.key.number for kept in ledger.remembered_updates("math")] == list(range(6 - left, 6))
    assert len(ledger.updates("math")) == 6


def test_fewer_reports_stay_from_when_fewer_are_asked_for(ledger: Ledger) -> None:
    for number in range(3):
        put(ledger, key(number))
    ledger.put_update(NewUpdate(key(3), StoredReport.of(b"{}"), {}, reports=1)).result()
    assert [kept.key.number for kept in ledger.remembered_updates("math")] == [3]


def test_an_update_between_others_changes_none_of_them(ledger: Ledger) -> None:
    middle = UpdateKey("other", "engine-1", "s", 5, 1)
    changes: list[dict[str, Any]] = [{"run": "math"}, {"engine": "engine-0"}, {"engine": "engine-2"}, {"session": "r"}]
    changes += [{"session": "t"}, {"number": 4}, {"number": 6}, {"worker": 0}, {"worker": 2}]
    others = [middle._replace(**change) for change in changes]
    for one in others:
        put(ledger, one, b"its own")
    put(ledger, middle, b"first")
    ledger.put_update(NewUpdate(middle, StoredReport.of(b"first"), {"late": True})).result()
    found = ledger.update(middle)
    assert found is not None
    assert (found.key, found.answer, ledger.told_update(middle)) == (middle, {"late": True}, b"first")
    for one in others:
        kept = ledger.update(one)
        assert kept is not None
        assert (kept.key, kept.answer, kept.digest) == (one, {"number": one.number}, StoredReport.of(b"its own").digest)
    for body in (b"a", b"b", b"c", b"d", b"e"):
        with pytest.raises(ConflictError, match="update 5 of worker 1 was told of with other content"):
            put(ledger, middle, body)
    last = middle._replace(number=7)
    ledger.put_update(NewUpdate(last, StoredReport.of(b"last"), {}, reports=1)).result()
    apart = [one for one in others if one[:2] != middle[:2] or one.worker != middle.worker]
    assert [ledger.told_update(one) for one in apart] == [b"its own"] * len(apart)
    assert ledger.told_update(middle) is None


def test_runs_that_write_in_turn_keep_their_own_newest(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "ROWS_KEPT", 3)
    for number in range(3):
        for run in ("math", "other"):
            put(ledger, key(number, run=run))
    assert [len(ledger.updates(run)) for run in ("math", "other")] == [3, 3]
    put(ledger, key(3, run="other"))
    assert [[kept.key.number for kept in ledger.updates(run)] for run in ("math", "other")] == [[2, 1, 0], [3, 2, 1]]


def test_a_report_takes_less_room_than_it_is_long() -> None:
    assert len(StoredReport.of(b"0123456789" * 1000).deflated) < 1000


def test_ten_thousand_updates_of_a_run_stay(ledger: Ledger) -> None:
    with ledger.database.write() as connection:
        connection.execute(
            sa.text(
                "WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < 9998) "
                "INSERT INTO updates (run, engine, session, number, worker, digest, answer) "
                "SELECT 'math', 'engine-0', 'session', n, 0, '', '{}' FROM numbers"
            )
        )
    put(ledger, key(9999))
    assert ledger.update(key(0)) is not None
    put(ledger, key(10_000))
    assert (ledger.update(key(0)) is None, ledger.update(key(1)) is None) == (True, False)
    with ledger.database.read() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM updates")).scalar() == 10_000
