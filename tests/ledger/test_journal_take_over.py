"""One coordinator at a time writes the journal of weight syncs; whoever takes over is not undone by the one before."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

from omni_rl.errors import CoordinatorRunningError, FencedError, JournalError
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.sync_journal import opened_journal
from omni_rl.ledger.tables import fence
from omni_rl.processes import life

from .conftest import committed_sync


@contextmanager
def child(code: str, url: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has opened `journal` of the run in `ledger`, and goes on with `code`."""
    opening = (
        "import os, signal, sys, time\n"
        "import sqlalchemy as sa\n"
        "from omni_rl.errors import OmniRLError\n"
        "from omni_rl.ledger.ledger import Ledger\n"
        "from omni_rl.ledger.sync_journal import LedgerJournal\n"
        "ledger = Ledger.open(sys.argv[1])\n"
        "journal = LedgerJournal(ledger, 'run')\n"
        "print('opened', flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", opening + code, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "opened\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_living_coordinator_keeps_others_out_and_is_named(url: str) -> None:
    with child("time.sleep(60)", url) as holder:
        said = f"process {holder.pid}.* coordinates the syncs of run in .* and still runs; end it first$"
        with pytest.raises(CoordinatorRunningError, match=said), opened_journal(url, "run"):
            pass
        with opened_journal(url, "other"):
            pass
        with opened_journal(url, "run", force=True) as journal:
            assert journal.next_epoch(None) == 1


def test_the_lock_ends_with_its_process(url: str) -> None:
    """Whoever opens the journal the moment after a kill gets it: what the kernel has not let go of is waited for."""
    for _ in range(3):
        with child("time.sleep(60)", url) as holder:
            holder.kill()
            holder.wait()
            with opened_journal(url, "run") as journal:
                journal.next_epoch(None)


STOPS = {
    "before its last statement": (
        "@sa.event.listens_for(sa.Engine, 'after_cursor_execute')\n"
        "def stop(connection, cursor, statement, *rest):\n"
        "    if 'INSERT INTO decisions' in statement:\n"
        "        stop_once()\n"
    ),
    "before its commit": "sa.event.listen(sa.Engine, 'commit', lambda connection: stop_once())\n",
}


@pytest.mark.slow
@pytest.mark.parametrize("where", STOPS)
def test_a_coordinator_that_is_stopped_in_the_middle_of_a_write(url: str, where: str) -> None:
    """The stopped coordinator holds the lock for writing. PostgreSQL takes it back, SQLite cannot; either way nothing
    of the write counts later. Where a commit failed, whether it counts is not known: the answer says so, and the next
    try is refused."""
    code = (
        "import threading\n"
        "epoch = journal.next_epoch(None)\n"
        "journal.begin('sync', None, epoch, '/a', 'recompute')\n"
        "stops = [signal.SIGSTOP]\n"
        "def stop_once():\n"
        "    if stops:\n"  # to this thread, which then goes no further; another one would take its time to stop it
        "        signal.pthread_kill(threading.get_ident(), stops.pop())\n" + STOPS[where] + "for _ in range(2):\n"
        "    try:\n"
        "        print(journal.decide('sync', epoch, 'commit'))\n"
        "    except OmniRLError as error:\n"
        "        print(error.code)\n"
    )
    with child(code, url) as old:
        while life(old.pid) != "stopped":
            threading.Event().wait(0.01)
        with opened_journal(url, "run", force=True) as journal:
            if url.startswith("sqlite"):
                with pytest.raises(JournalError, match=r"is locked; another process is .* end it if it is"):
                    journal.next_epoch(None)
                old.kill()
                old.wait()
            assert journal.decide("sync", journal.next_epoch(None), "abort") == "abort"
            old.send_signal(signal.SIGCONT)
            said, _ = old.communicate()
            if url.startswith("sqlite"):
                assert said == ""
            else:
                assert said.split() == ["journal_failed" if where == "before its commit" else "fenced", "fenced"]
            record = journal.record("sync")
            assert record is not None
            assert record.decision == "abort"


@pytest.mark.parametrize("late", ["decide", "begin", "prepared", "finish", "next_epoch"])
def test_a_write_that_waits_for_a_take_over_is_refused(url: str, late: str) -> None:
    """Its transaction begins before the newer coordinator's is committed, and must not see the world as it was."""
    with Ledger.open(url) as first, opened_journal(url, "run") as journal:
        old = committed_sync(journal, "done", "/a", "v1")
        journal.finish("done", old, {})
        journal.begin("sync", None, old, "/b", "recompute")
        writes: dict[str, Callable[[], object]] = {
            "decide": lambda: journal.decide("sync", old, "commit"),
            "begin": lambda: journal.begin("late", None, old, "/b", "recompute"),
            "prepared": lambda: journal.prepared("sync", old, "v2"),
            "finish": lambda: journal.finish("sync", old, {}),
            "next_epoch": lambda: journal.next_epoch(old),
        }
        with ThreadPoolExecutor(1) as thread:
            with first.database.write() as connection:
                connection.execute(sa.update(fence).where(fence.c.run == "run").values(epoch=old + 1))
                writing = thread.submit(writes[late])
                time.sleep(0.2)  # for the write to get to where it waits
                assert not writing.done()
            with pytest.raises(FencedError, match=f"has epoch {old}, a newer one took over with {old + 1}"):
                writing.result()
        left = journal.unfinished()
        assert left is not None
        assert (left.sync, left.slab.version, left.decision) == ("sync", "", None)
        assert journal.next_epoch(old + 1) == old + 2
