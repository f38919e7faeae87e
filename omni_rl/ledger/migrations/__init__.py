"""Brings a ledger's tables to what `omni_rl.ledger.tables` says: upwards only, when it is opened.

A change of the tables is a new file in `versions`; files that were released are never edited.
"""

import time
from pathlib import Path

import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext, RevisionStep
from alembic.script import ScriptDirectory

from omni_rl.errors import LedgerVersionError
from omni_rl.ledger.database import STATEMENT_SECONDS, Database, is_busy

MIGRATION_SECONDS = 60
"""How long whoever opens a ledger waits while another process brings its tables up to date."""
SCRIPTS = ScriptDirectory(str(Path(__file__).parent))


def upgrade(database: Database, to: str = "head") -> None:
    """Bring the tables to revision `to`, in one transaction; two processes that open the same ledger take turns.

    Raises:
        LedgerVersionError: a newer omni-rl wrote the ledger, which is left as it is.
    """
    deadline = time.monotonic() + MIGRATION_SECONDS
    while True:
        with database.read("opened") as connection:  # whoever finds the tables as they should be waits for no writer
            if MigrationContext.configure(connection).get_current_revision() == SCRIPTS.get_current_head():
                return None
        try:
            return _upgrade(database, to)
        except sa.exc.SQLAlchemyError as error:
            if not is_busy(error) or time.monotonic() > deadline:
                raise database.failure("opened", error) from error


def _upgrade(database: Database, to: str) -> None:
    with database.write() as connection:
        if not database.is_sqlite:  # between two statements, a migration may compute for longer than a write may
            connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = '{STATEMENT_SECONDS}s'")
        current = MigrationContext.configure(connection).get_current_revision()
        if current == SCRIPTS.get_current_head():
            return
        known = {script.revision for script in SCRIPTS.walk_revisions()}
        if current is not None and current not in known:
            raise LedgerVersionError(
                f"the ledger {database.name} has schema {current}, made by a newer omni-rl; this one knows up to "
                f"{SCRIPTS.get_current_head()}. Run the newer one, or use another ledger"
            )
        _run(connection, to)


def _run(connection: sa.Connection, to: str) -> None:
    def steps(revision: str | tuple[str, ...], context: MigrationContext) -> list[RevisionStep]:
        return SCRIPTS._upgrade_revs(to, revision)  # type: ignore[arg-type]  # what alembic.command.upgrade calls

    with EnvironmentContext(Config(), SCRIPTS, fn=steps) as environment:
        environment.configure(connection=connection)
        environment.run_migrations()
