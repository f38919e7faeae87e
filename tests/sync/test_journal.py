"""The journal: one decision a sync, one coordinator at a time, and everything still there for the next one."""

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from omni_rl.errors import CoordinatorRunningError, FencedError, JournalError
from omni_rl.sync.journal import SqliteJournal
from omni_rl.sync.replica import SlabRef


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[SqliteJournal]:
    opened = SqliteJournal(tmp_path / "deep" / "journal.sqlite")
    yield opened
    opened.close()


def begun(journal: SqliteJournal, sync: str, number: int, key: str | None = None) -> int:
    epoch = journal.next_epoch(None)
    journal.begin(sync, key, epoch, f"slab-{number % 2}", "keep")
    journal.prepared(sync, epoch, f"run/1/{number}/aa")
    return epoch


def test_what_is_written_is_there_for_the_next_coordinator(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "journal.sqlite")
    epoch = begun(journal, "first", 1, key="step 1")
    assert journal.committed() is None
    assert journal.decide("first", epoch, "commit") == "commit"
    journal.finish("first", epoch, {"outcome": "committed"})
    epoch = begun(journal, "second", 2)
    journal.close()

    again = SqliteJournal(journal.path)
    assert again.committed() == SlabRef("slab-1", "run/1/1/aa")
    left = again.unfinished()
    assert left is not None
    assert (left.sync, left.decision, left.finished, left.mode) == ("second", None, None, "keep")
    assert (left.slab, left.previous) == (SlabRef("slab-0", "run/1/2/aa"), SlabRef("slab-1", "run/1/1/aa"))
    known = again.by_key("step 1")
    assert known is not None
    assert known.result == {"outcome": "committed"}
    assert [record.sync for record in again.records(10)] == ["second", "first"]
    assert again.record("third") is None
    assert again.next_epoch(None) == epoch + 1
    again.close()


def test_the_first_decision_stands(journal: SqliteJournal) -> None:
    epoch = begun(journal, "sync", 1)
    assert journal.decide("sync", epoch, "abort") == "abort"
    assert journal.decide("sync", epoch, "commit") == "abort"
    assert journal.committed() is None


def test_a_coordinator_that_was_replaced_writes_nothing_more(journal: SqliteJournal) -> None:
    old = begun(journal, "sync", 1)
    new = journal.next_epoch(None)
    attempts = (
        lambda: journal.decide("sync", old, "commit"),
        lambda: journal.prepared("sync", old, "run/1/9/bb"),
        lambda: journal.finish("sync", old, {}),
        lambda: journal.begin("other", None, old, "slab-0", "drain"),
        lambda: journal.next_epoch(old),
    )
    for attempt in attempts:
        with pytest.raises(FencedError, match=f"epoch {old}, a newer one took over with {new}"):
            attempt()
    left = journal.unfinished()
    assert left is not None
    assert (left.decision, left.slab.version) == (None, "run/1/1/aa")
    assert journal.next_epoch(new) == new + 1


def test_a_key_belongs_to_one_sync(journal: SqliteJournal) -> None:
    epoch = begun(journal, "first", 1, key="same")
    with pytest.raises(JournalError, match="UNIQUE"):
        journal.begin("second", "same", epoch, "slab-0", "keep")


def test_a_living_coordinator_keeps_others_out(journal: SqliteJournal) -> None:
    code = (
        f"from omni_rl.sync.journal import SqliteJournal as J; from pathlib import Path; J(Path({str(journal.path)!r}))"
    )
    refused = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert CoordinatorRunningError.__name__ in refused.stderr
    assert "still runs; end it first" in refused.stderr
    forced = subprocess.run([sys.executable, "-c", code.replace("))", "), force=True)")], capture_output=True)
    assert forced.returncode == 0


def test_a_file_that_is_no_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"something else entirely " * 100)
    with pytest.raises(JournalError, match=r"journal\.sqlite cannot be opened"):
        SqliteJournal(path)
    with pytest.raises(JournalError, match="cannot be opened"):
        SqliteJournal(tmp_path / "journal.sqlite" / "below a file")


def test_decisions_survive_without_a_checkpoint(journal: SqliteJournal) -> None:
    """Another connection, which sees the disk and not this process's memory, finds the row at once."""
    epoch = begun(journal, "sync", 1)
    journal.decide("sync", epoch, "commit")
    other = sqlite3.connect(journal.path)
    assert other.execute("SELECT sync, decision, epoch FROM decisions").fetchall() == [("sync", "commit", epoch)]
    assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.close()
