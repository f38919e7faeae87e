"""What the journal of weight syncs and the ledger answer about syncs; on SQLite and on PostgreSQL."""

import time
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from omni_rl.errors import CoordinatorRunningError, FencedError, JournalError, NotFoundError
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.sync_journal import LedgerJournal
from omni_rl.sync.replica import SlabRef
from omni_rl.sync.states import Decision, Phase, SyncEvent


@pytest.fixture
def journal(ledger: Ledger) -> Iterator[LedgerJournal]:
    result = LedgerJournal(ledger, "run")
    yield result
    result.close()


def decided(journal: LedgerJournal, name: str, decision: Decision | None, key: str | None = None) -> int:
    epoch = journal.next_epoch(None)
    journal.begin(name, key, epoch, f"/{name}", "drain")
    journal.prepared(name, epoch, f"v-{name}")
    if decision is not None:
        journal.decide(name, epoch, decision)
    return epoch


def test_what_is_committed_stays_so_while_later_syncs_are_aborted_or_open(journal: LedgerJournal) -> None:
    assert journal.committed() is None
    epochs = [decided(journal, *of) for of in (("a", "commit"), ("b", "abort"), ("c", None))]
    assert epochs == [1, 2, 3]
    assert journal.committed() == SlabRef("/a", "v-a")
    found = {record.sync: record for record in journal.records(10)}
    assert list(found) == ["c", "b", "a"]
    assert [found[name].previous for name in "abc"] == [None, SlabRef("/a", "v-a"), SlabRef("/a", "v-a")]
    assert [found[name].decision for name in "abc"] == ["commit", "abort", None]
    assert [found[name].epoch for name in "abc"] == epochs
    newest = journal.unfinished()
    assert newest is not None
    assert newest.sync == "c"
    journal.prepared("a", 3, "v-a")
    assert [record.slab for record in journal.records(10)] == [SlabRef(f"/{name}", f"v-{name}") for name in "cba"]
    journal.finish("b", 3, {"outcome": "rolled back"})
    assert [record.finished is None for record in journal.records(10)] == [True, False, True]
    before = time.time()
    journal.finish("c", 3, {"outcome": "failed"})
    finished = journal.record("c")
    assert finished is not None
    assert finished.finished is not None
    assert finished.started <= before <= finished.finished <= time.time()
    assert finished.result == {"outcome": "failed"}
    left = journal.unfinished()
    assert left is not None
    assert left.sync == "a"


def test_an_epoch_is_refused_from_the_next_one_on(journal: LedgerJournal) -> None:
    epoch = decided(journal, "a", None)
    assert journal.decide("a", epoch, "commit") == "commit"
    assert journal.decide("a", epoch + 1, "abort") == "commit", "a later one may ask, and the decision stands"
    assert journal.next_epoch(epoch) == epoch + 1
    with pytest.raises(FencedError, match=f"a new epoch: this coordinator has epoch {epoch}, .* with {epoch + 1}"):
        journal.next_epoch(epoch)
    for what, write in (
        ("sync b", lambda: journal.begin("b", None, epoch, "/b", "drain")),
        ("the version of sync a", lambda: journal.prepared("a", epoch, "v")),
        ("the decision of sync a", lambda: journal.decide("a", epoch, "abort")),
        ("the result of sync a", lambda: journal.finish("a", epoch, {})),
    ):
        with pytest.raises(FencedError, match=f"^{what}: this coordinator"):
            write()


def test_syncs_are_listed_with_their_runs_and_by_their_numbers(ledger: Ledger, journal: LedgerJournal) -> None:
    other = LedgerJournal(ledger, "other")
    epochs = [
        decided(of, name, "commit", key="key" if name == "b" else None)
        for of, name in ((journal, "a"), (other, "b"), (journal, "c"))
    ]
    assert epochs == [1, 1, 2]
    assert [[record.sync for record in of.records(9)] for of in (journal, other)] == [["c", "a"], ["b"]]
    assert (journal.committed(), other.committed()) == (SlabRef("/c", "v-c"), SlabRef("/b", "v-b"))
    listed = ledger.syncs()
    assert [(one.run, one.record.sync, one.record.key, one.transitions) for one in listed] == [
        ("run", "c", None, ()),
        ("other", "b", "key", ()),
        ("run", "a", None, ()),
    ]
    assert [one.number for one in listed] == sorted((one.number for one in listed), reverse=True)
    assert ledger.syncs(limit=2) == listed[:2]
    assert ledger.syncs(before=listed[1].number) == listed[2:]
    assert ledger.syncs(before=listed[1].number + 1, run="run") == listed[2:]
    assert ledger.syncs(run="other") == [listed[1]]
    assert ledger.sync("b") == listed[1]
    assert listed[0].record == journal.record("c")
    assert journal.by_key("key") is None, "another run's"
    assert journal.record("b") is not None
    with pytest.raises(NotFoundError, match="there is no sync none"):
        ledger.sync("none")
    other.close()


def test_what_happened_in_a_sync_is_in_the_order_in_which_it_was_seen(ledger: Ledger, journal: LedgerJournal) -> None:
    decided(journal, "a", None)
    decided(journal, "b", None)
    before = time.time()
    for sync, detail in (("a", "1"), ("b", "2"), ("a", "3")):
        journal.observe(SyncEvent(sync, Phase.PAUSE, "entered", "r0", detail))
    ledger.add_event("after", {}).result()
    found = ledger.sync("a").transitions
    assert [one.detail for one in found] == ["1", "3"]
    assert before <= found[0].at <= found[1].at <= time.time()


def test_what_cannot_be_written_of_a_sync_is_logged(
    ledger: Ledger, journal: LedgerJournal, caplog: pytest.LogCaptureFixture
) -> None:
    with ledger.database.write() as connection:
        connection.execute(sa.text("DROP TABLE transitions"))
    journal.observe(SyncEvent("sync", Phase.PAUSE, "entered"))
    ledger.add_event("after", {}).result()
    assert "a sync's transition was not kept: the ledger" in caplog.text
    assert [event.kind for event in ledger.events()] == ["after"]


def test_a_run_is_taken_from_another_by_force_alone(ledger: Ledger, journal: LedgerJournal) -> None:
    with pytest.raises(
        CoordinatorRunningError, match=r"coordinates the syncs of run in .* and still runs; end it first$"
    ):
        LedgerJournal(ledger=ledger, run="run")
    assert journal.next_epoch(None) == 1
    LedgerJournal(ledger=ledger, run="run", force=True).close()


def test_a_journal_of_a_closed_ledger_says_so(ledger: Ledger, journal: LedgerJournal) -> None:
    ledger.close()
    with pytest.raises(JournalError, match="the ledger is closed"):
        journal.next_epoch(None)
