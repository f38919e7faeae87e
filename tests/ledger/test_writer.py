"""The thread that writes."""

import time
import weakref
from pathlib import Path

import sqlalchemy as sa

from omni_rl.ledger.database import Database
from omni_rl.ledger.writer import Writer


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
