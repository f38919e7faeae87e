"""The thread that writes."""

import threading
import time
import weakref
from pathlib import Path

import sqlalchemy as sa

from omni_rl.ledger.database import Database
from omni_rl.ledger.writer import GROUP, Writer


class Records:
    """Megabytes, say."""

    def write(self, connection: sa.Connection) -> int:
        """Their operation."""
        return int(connection.execute(sa.text("SELECT 1")).scalar_one())


def test_what_was_written_is_let_go_of_before_the_next_write(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/ledger.db")
    writer = Writer(database)
    try:
        records = Records()
        there = weakref.ref(records)
        assert writer.submit(records.write).result() == 1
        del records
        for _ in range(1000):
            if there() is None:
                break
            time.sleep(0.001)
        assert there() is None
    finally:
        writer.close()
        database.close()


def test_what_waits_is_written_in_one_transaction_as_far_as_it_fits(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/ledger.db")
    writer = Writer(database)
    transactions: list[sa.Connection] = []
    begun, go = threading.Event(), threading.Event()

    def first(connection: sa.Connection) -> bool:
        begun.set()
        return go.wait(30)

    try:
        writer.check = transactions.append
        before = writer.submit(first)
        assert begun.wait(30)
        waiting = [writer.submit(Records().write) for _ in range(GROUP + 1)]
        go.set()
        assert before.result()
        assert [one.result() for one in waiting] == [1] * len(waiting)
        assert len(transactions) == 3
    finally:
        writer.close()
        database.close()
