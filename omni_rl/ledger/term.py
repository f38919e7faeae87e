"""The one coordinator of a ledger: a lock that ends with its process, and a number that each of its writes checks."""

import sqlalchemy as sa

from omni_rl.errors import TakenOverError
from omni_rl.ledger.changes import insert_new
from omni_rl.ledger.database import Database
from omni_rl.ledger.lock import CoordinatorLock
from omni_rl.ledger.tables import fence

NAME = "/coordinator"
"""The name under which the fence has the coordinator's number; no run may have it."""
_NUMBER = sa.select(fence.c.epoch).where(fence.c.run == NAME)


class Term:
    """The time for which one process is the ledger's coordinator, from its start until another's. The lock keeps a
    second coordinator away; where the lock was lost (its file was removed, PostgreSQL ended the session), the number
    does: no clock decides."""

    def __init__(self, database: Database) -> None:
        """Begin a term, with a number above that of every earlier one.

        Raises:
            CoordinatorRunningError: another process is the ledger's coordinator.
            LedgerError: the ledger cannot be used.
        """
        self._lock = CoordinatorLock(database, NAME, "keeps the runs")
        try:
            with database.reported("taken"), database.write() as connection:
                insert_new(connection, fence, {"run": NAME, "epoch": 0})
                raised = sa.update(fence).where(fence.c.run == NAME).values(epoch=fence.c.epoch + 1)
                self.number = int(connection.execute(raised.returning(fence.c.epoch)).scalar_one())
        except BaseException:
            self._lock.release()
            raise

    def check(self, connection: sa.Connection) -> None:
        """Raise `TakenOverError` if a newer term began. In a write's transaction the answer holds until it commits:
        nobody else writes meanwhile."""
        newest = connection.execute(_NUMBER).scalar_one()
        if newest != self.number:
            raise TakenOverError(
                f"another coordinator took over the ledger, and this one (term {self.number}, the other's is {newest}) "
                "writes nothing any more: end it, and post to the other"
            )

    def write_again(self, connection: sa.Connection) -> None:
        """Write this term's number again, as a trial: a disk that refused a write because it was full may take one by
        now."""
        connection.execute(sa.update(fence).where(fence.c.run == NAME).values(epoch=self.number))

    def close(self) -> None:
        """Release the lock. May be called again."""
        self._lock.release()
