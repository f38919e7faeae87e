"""What takes locks from the processes that hold them."""

from pathlib import Path

import psycopg
import sqlalchemy as sa


def lose_locks(url: str) -> None:
    """Beside SQLite their files are removed; PostgreSQL ends the sessions that hold them."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        for lock in Path(str(parsed.database)).parent.glob("*.lock"):
            lock.unlink()
        return
    with psycopg.connect(f"host={parsed.query['host']} user=postgres dbname={parsed.database}") as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
