"""The journal of weight syncs: one decision a sync, one coordinator at a time, all there for the next one."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from omni_rl.errors import CoordinatorRunningError, FencedError, JournalError, NotFoundError
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.sync_journal import LedgerJournal, opened_journal
from omni_rl.ledger.tables import decisions
from omni_rl.sync.replica import SlabRef
from omni_rl.sync.states import Phase, SyncEvent

from .conftest import committed_sync

Opener = Callable[..., LedgerJournal]


@pytest.fixture
def opened(ledger: Ledger) -> Opener:
    """Opens the journal as often as a test likes."""
    return lambda force=False: LedgerJournal(ledger, "run", force=force)


@pytest.fixture
def journal(opened: Opener) -> Iterator[LedgerJournal]:
    result = opened()
    yield result
    result.close()


def test_a_sync_is_kept_from_its_beginning_to_its_end(journal: LedgerJournal) -> None:
    committed_sync(journal, "first", "/a", "v1")
    epoch = journal.next_epoch(None)
    journal.begin("second", "key", epoch, "/b", "drain")
    record = journal.record("second")
    assert record is not None
    assert (record.sync, record.key, record.epoch, record.mode) == ("second", "key", epoch, "drain")
    assert record.slab == SlabRef("/b", "")
    assert record.previous == SlabRef("/a", "v1")
    assert (record.decision, record.finished, record.result) == (None, None, None)
    journal.prepared("second", epoch, "v2")
    assert journal.decide("second", epoch, "commit") == "commit"
    assert journal.committed() == SlabRef("/b", "v2")
    journal.finish("second", epoch, {"outcome": "committed", "agreement": {"text": {"max": float("inf")}}})
    done = journal.by_key("key")
    assert done is not None
    assert done.finished is not None
    assert done.finished >= done.started
    assert done.result == {"outcome": "committed", "agreement": {"text": {"max": float("inf")}}}


def test_what_is_unfinished_is_found(journal: LedgerJournal) -> None:
    assert journal.unfinished() is None
    epoch = committed_sync(journal, "first", "/a", "v1")
    found = journal.unfinished()
    assert found is not None
    assert (found.sync, found.decision) == ("first", "commit")
    journal.finish("first", epoch, {})
    assert journal.unfinished() is None


def test_the_first_decision_stands(journal: LedgerJournal) -> None:
    epoch = journal.next_epoch(None)
    journal.begin("sync", None, epoch, "/a", "recompute")
    journal.prepared("sync", epoch, "v1")
    assert journal.decide("sync", epoch, "abort") == "abort"
    assert journal.decide("sync", epoch, "commit") == "abort"
    assert journal.committed() is None


def test_an_older_coordinator_is_refused_everywhere(journal: LedgerJournal) -> None:
    old = committed_sync(journal, "first", "/a", "v1")
    new = journal.next_epoch(None)
    assert new > old
    refused: list[Callable[[], object]] = [
        lambda: journal.next_epoch(old),
        lambda: journal.begin("late", None, old, "/b", "recompute"),
        lambda: journal.prepared("first", old, "v9"),
        lambda: journal.decide("first", old, "abort"),
        lambda: journal.finish("first", old, {}),
    ]
    for attempt in refused:
        with pytest.raises(FencedError, match=f"has epoch {old}, a newer one took over with {new}"):
            attempt()
    assert journal.record("late") is None
    record = journal.record("first")
    assert record is not None
    assert (record.slab.version, record.finished) == ("v1", None)
    assert journal.next_epoch(new) > new


def test_records_come_newest_first(journal: LedgerJournal) -> None:
    for name in ("a", "b", "c"):
        epoch = committed_sync(journal, name, f"/{name}", name)
        journal.finish(name, epoch, {})
    assert [record.sync for record in journal.records(2)] == ["c", "b"]
    assert journal.committed() == SlabRef("/c", "c")
    assert journal.record("none") is None
    assert journal.by_key("none") is None


def test_a_key_is_one_operation(journal: LedgerJournal) -> None:
    epoch = committed_sync(journal, "first", "/a", "v1", key="key")
    with pytest.raises(JournalError):
        journal.begin("second", "key", epoch, "/b", "recompute")
    assert journal.record("second") is None


def test_one_live_coordinator_at_a_time(opened: Opener) -> None:
    first = opened()
    with pytest.raises(CoordinatorRunningError, match="still runs"):
        opened()
    taken = opened(force=True)
    epoch = taken.next_epoch(None)
    taken.close()
    first.close()
    again = opened()
    assert again.next_epoch(epoch) > epoch
    again.close()


def test_all_is_there_for_the_next_coordinator(opened: Opener) -> None:
    first = opened()
    epoch = committed_sync(first, "sync", "/a", "v1")
    first.close()
    second = opened()
    found = second.unfinished()
    assert found is not None
    assert (found.sync, found.slab, found.decision, found.epoch) == ("sync", SlabRef("/a", "v1"), "commit", epoch)
    second.close()


def test_state_may_be_asked_for_while_a_sync_is_written(journal: LedgerJournal) -> None:
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            for _ in range(30):
                journal.records(5)
                journal.committed()
        except BaseException as error:
            errors.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    for number in range(10):
        journal.finish(f"s{number}", committed_sync(journal, f"s{number}", "/a", str(number)), {})
    asking.join()
    assert errors == []
    assert len(journal.records(100)) == 10


def test_runs_in_one_ledger_do_not_see_each_others_syncs(ledger: Ledger) -> None:
    one, other = LedgerJournal(ledger, "one"), LedgerJournal(ledger, "other")
    high = [one.next_epoch(None) for _ in range(3)][-1]
    committed_sync(one, "a", "/a", "v1", key="key")
    assert other.next_epoch(None) < high
    assert other.committed() is None
    assert other.unfinished() is None
    assert other.by_key("key") is None
    committed_sync(other, "b", "/b", "v1", key="key")
    assert [(sync.run, sync.record.sync) for sync in ledger.syncs()] == [("other", "b"), ("one", "a")]
    assert [sync.record.sync for sync in ledger.syncs(run="one")] == ["a"]
    assert [sync.record.sync for sync in ledger.syncs(before=ledger.syncs()[0].number)] == ["a"]
    one.close()
    other.close()


def test_what_happens_in_a_sync_is_kept_and_told(ledger: Ledger) -> None:
    journal = LedgerJournal(ledger, "run")
    committed_sync(journal, "sync", "/a", "v1")
    for phase, what, replica in (
        (Phase.PAUSE, "entered", None),
        (Phase.PAUSE, "failed", "r1"),
        (Phase.ROLLBACK, "entered", None),
    ):
        journal.observe(SyncEvent("sync", phase, what, replica, "why"))  # type: ignore[arg-type]
    ledger.add_event("after", {}).result()
    found = ledger.sync("sync")
    assert [(t.phase, t.what, t.replica, t.detail) for t in found.transitions] == [
        ("pause", "entered", None, "why"),
        ("pause", "failed", "r1", "why"),
        ("rollback", "entered", None, "why"),
    ]
    assert found.record.decision == "commit"
    assert [(event.kind, event.run) for event in ledger.events()] == [("sync", "run")] * 3 + [("after", None)]
    assert ledger.events()[1].data == {
        "sync": "sync",
        "phase": "pause",
        "what": "failed",
        "replica": "r1",
        "detail": "why",
    }
    with pytest.raises(NotFoundError, match="no sync other"):
        ledger.sync("other")
    journal.close()


def test_a_closed_ledger_does_not_end_a_sync_that_is_observed(url: str, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger.open(url)
    journal = LedgerJournal(ledger, "run")
    ledger.close()
    journal.observe(SyncEvent("sync", Phase.PAUSE, "entered"))
    assert "pause was not kept" in caplog.text
    journal.close()


def test_a_decision_is_on_the_disk_when_it_is_told(url: str) -> None:
    """Another connection, which sees the disk and not this process's memory, finds the row at once."""
    with opened_journal(url, "run") as journal:
        epoch = committed_sync(journal, "sync", "/a", "v1")
        with Ledger.open(url) as other, other.database.read() as connection:
            rows = connection.execute(sa.select(decisions.c.sync, decisions.c.decision, decisions.c.epoch)).all()
            assert [tuple(row) for row in rows] == [("sync", "commit", epoch)]


def test_what_no_journal_can_be_in(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"something else entirely " * 1000)
    with pytest.raises(JournalError, match=r"ledger\.db cannot be opened"), opened_journal(path, "run"):
        pass
    with pytest.raises(JournalError, match="cannot be made"), opened_journal(path / "below a file" / "x.db", "run"):
        pass
