"""Two coordinators and one ledger: a second is refused by name, and one that was replaced writes nothing."""

import contextlib
import os
import time

import pytest

from omni_rl.api.runs import RunBody
from omni_rl.errors import CoordinatorRunningError, TakenOverError
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.sync_journal import LedgerJournal
from omni_rl.ledger.term import NAME
from omni_rl.ledger.writer import GROUP, Refusal
from tests.ledger.locks import lose_locks

CONFIG = {"model": "a model", "dtype": "float32"}


def test_a_second_coordinator_is_refused_by_name_until_the_first_has_ended(url: str, ledger: Ledger) -> None:
    ledger.take()
    ledger.take()
    with Ledger.open(url) as second:
        with pytest.raises(CoordinatorRunningError, match=rf"process {os.getpid()}\b.* keeps the runs"):
            second.take()
        ledger.close()
        second.take()
        second.put_run("math", CONFIG).result()


def test_a_replaced_coordinator_writes_nothing_and_is_not_ready(url: str, ledger: Ledger) -> None:
    ledger.take()
    ledger.put_run("before", CONFIG).result()
    ledger.ready()
    lose_locks(url)
    with Ledger.open(url) as second:
        second.take()
        late = [ledger.put_run(f"late-{n}", CONFIG) for n in range(2 * GROUP)]
        for write in late:
            with pytest.raises(TakenOverError, match="another coordinator took over"):
                write.result()
        with pytest.raises(TakenOverError):
            ledger.ready()
        second.ready()
        second.put_run("after", CONFIG).result()
        assert {row.run for row in second.to_remember(100)} == {"before", "after"}


def test_no_run_can_be_named_as_the_term() -> None:
    with pytest.raises(ValueError, match="run"):
        RunBody(run=NAME, model="a model", dtype="float32", framework="any")


def test_the_syncs_of_runs_do_not_count_as_terms(ledger: Ledger) -> None:
    """Their numbers stand beside the coordinator's, whatever the runs' names are."""
    for name in ("+", "run"):
        with contextlib.closing(LedgerJournal(ledger, name)) as journal:
            assert [journal.next_epoch(None) for _ in range(3)] == [1, 2, 3]
    ledger.take()
    ledger.ready()
    assert ledger.put_run("math", CONFIG).result() == "new"
    writer = ledger.writer
    writer.refusal = Refusal(time.monotonic() - 60, "the disk was full")
    ledger.ready()
    assert not ledger.writer.refusal, "a trial was written"
    for name in ("+", "run"):
        with contextlib.closing(LedgerJournal(ledger, name)) as journal:
            assert journal.next_epoch(3) == 4
