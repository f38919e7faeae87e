"""What holds of every connection to a ledger: durable, one writer at a time, snapshots, and errors that say what to
do."""

import contextlib
import shutil
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sa

from omni_rl.errors import ConfigError, CoordinatorRunningError, LedgerError
from omni_rl.ledger import database, migrations
from omni_rl.ledger.database import Database
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.lock import CoordinatorLock
from omni_rl.ledger.tables import attempts, runs
from tests.ledgers import new_ledger, open_ledger
from tests.postgres import Postgres


def test_a_reader_sees_one_moment_whatever_is_written_meanwhile(ledger: Ledger) -> None:
    ledger.put_run("before", {}).result()
    with ledger.database.read() as connection:
        first = connection.execute(sa.select(runs.c.run)).scalars().all()
        ledger.put_run("meanwhile", {}).result()
        assert connection.execute(sa.select(runs.c.run)).scalars().all() == first == ["before"]
    assert len(ledger.to_remember(100)) == 2


def test_what_refers_to_a_row_that_is_not_there_is_refused(ledger: Ledger) -> None:
    row = {"run": "none", "attempt": 0, "started": 0.0}
    with pytest.raises(LedgerError, match="cannot be written"):
        ledger.writer.submit(lambda connection: connection.execute(sa.insert(attempts), row).close()).result()


def test_a_write_waits_for_another_process_and_then_says_what_to_do(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "LOCK_SECONDS", 0.05)
    with open_ledger(url) as first, Ledger.open(url) as second:
        with first.database.write():
            said = r"cannot be written: .*; another process is in the middle of a write, end it if it is stopped$"
            with pytest.raises(LedgerError, match=said):
                second.put_run("run", {}).result()
            assert second.to_remember(100) == []
        assert second.put_run("run", {}).result() == "new"
        with pytest.raises(LedgerError) as other:
            second.writer.submit(lambda connection: connection.execute(sa.text("SELECT no_such")).close()).result()
        assert "another process" not in str(other.value)
        assert "\n" not in str(other.value)


def test_sqlite_writes_reach_the_disk_and_its_readers_write_nothing(tmp_path: Path) -> None:
    with open_ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        with ledger.database.write() as connection:
            names = ("journal_mode", "synchronous", "page_size", "journal_size_limit")
            *settings, left = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]
        assert settings == ["wal", 2, database.PAGE_BYTES], "a commit waits for the disk"
        assert 2**20 <= int(left or 0) <= 2**30, "a large write leaves no large file"
        with pytest.raises(LedgerError, match=r"cannot be read: .*readonly"), ledger.database.read() as connection:
            connection.execute(sa.delete(runs))
        assert ledger.database.file == tmp_path / "ledger.db"


def test_postgresql_takes_the_turn_from_a_stopped_writer_before_those_who_wait_give_up(postgres: Postgres) -> None:
    names = ("idle_in_transaction_session_timeout", "lock_timeout", "statement_timeout")
    asked = sa.text("SELECT name, setting::bigint FROM pg_settings WHERE name = ANY(:names)")
    with open_ledger(new_ledger(postgres)) as ledger:
        with ledger.database.write() as connection:
            writer = dict(tuple(row) for row in connection.execute(asked, {"names": list(names)}))
            assert connection.execute(sa.text("SHOW synchronous_commit")).scalar() == "on"
        with ledger.database.read() as connection:
            reader = dict(tuple(row) for row in connection.execute(asked, {"names": list(names)}))
        assert ledger.database.file is None
    idle, lock, statement = (writer[name] for name in names)
    assert 0 < lock - idle <= 1000 < idle, "as late as it may"
    assert lock < statement
    assert reader["idle_in_transaction_session_timeout"] == reader["statement_timeout"] == statement


def test_a_new_file_that_another_connection_holds_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other may be turning it into one with a write-ahead log."""
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            other.execute("ROLLBACK")

    monkeypatch.setattr("omni_rl.ledger.database.time.sleep", sleep)
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with contextlib.closing(Database(f"sqlite:///{tmp_path}/ledger.db")) as waiting, waiting.write() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert len(waits) == 2
        assert 0 < sum(waits) < 0.1, "it asks again soon"


def test_a_file_that_is_held_for_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += 1.0

    monkeypatch.setattr(database, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = Database(f"sqlite:///{tmp_path}/ledger.db")
        with pytest.raises(sa.exc.OperationalError, match="database is locked"), waiting.write():
            pass
        waiting.close()
    assert 0 < now - 1000 - database.LOCK_SECONDS <= 1


def test_a_ledger_that_somebody_keeps_from_being_migrated_is_said_to_be_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "LOCK_SECONDS", 0.05)
    monkeypatch.setattr(migrations, "MIGRATION_SECONDS", 0)
    url = f"sqlite:///{tmp_path}/ledger.db"
    other = Database(url)
    migrations.upgrade(other, "r0001")
    with other.write(), pytest.raises(LedgerError, match="cannot be opened: database is locked; another process"):
        Ledger.open(url)
    other.close()
    Ledger.open(url).close()


def test_a_disk_with_less_than_a_mebibyte_left_makes_a_ledger_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 2**20
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with open_ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        ledger.ready()
        free -= 1
        with pytest.raises(LedgerError, match=r"the disk of .*ledger\.db has 1048575 bytes left"):
            ledger.ready()


def test_a_directory_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError, match=r"the ledger's directory .*/file/below cannot be made: Not a directory"):
        Ledger.open(f"sqlite:///{tmp_path}/file/below/ledger.db")
    with pytest.raises(ConfigError, match="ledger: sqlite needs a file"):
        Ledger.open("sqlite://")
    with pytest.raises(ConfigError, match=r"ledger: mysql is neither sqlite nor postgresql\+psycopg"):
        Ledger.open("mysql://host/db")


def test_a_ledger_is_made_below_directories_that_are_not_there(tmp_path: Path) -> None:
    Ledger.open(f"sqlite:///{tmp_path}/not/there/ledger.db").close()
    assert (tmp_path / "not" / "there" / "ledger.db").exists()


def test_a_full_disk_is_not_said_to_be_another_process(tmp_path: Path) -> None:
    with open_ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:

        def fill(connection: sa.Connection) -> None:
            connection.exec_driver_sql("PRAGMA max_page_count=1").close()
            connection.execute(sa.insert(runs), {"run": "x" * 10**6, "created": 0.0, "config": {}})

        with pytest.raises(LedgerError, match=r"cannot be written: database or disk is full$"):
            ledger.writer.submit(fill).result()


def test_a_short_url_of_postgresql_is_taken(postgres: Postgres) -> None:
    url = new_ledger(postgres).replace("postgresql+psycopg://", "postgresql://")
    with Ledger.open(url) as ledger:
        assert ledger.put_run("run", {}).result() == "new"
        assert ledger.database.name.startswith("postgresql+psycopg://postgres@/ledger_")


def test_a_lock_whose_file_cannot_be_written_is_said(tmp_path: Path) -> None:
    with open_ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        CoordinatorLock(ledger.database, "run", "runs").release()
        (file,) = tmp_path.glob("ledger.db.*.lock")
        file.unlink()
        file.mkdir()
        with pytest.raises(LedgerError, match=rf"the lock {file} cannot be used: Is a directory"):
            CoordinatorLock(ledger.database, "run", "runs")


def test_locks_of_other_names_are_apart_and_one_can_be_taken_by_force(ledger: Ledger) -> None:
    held = CoordinatorLock(ledger.database, "one", "has one")
    CoordinatorLock(ledger.database, "other", "has another").release()
    with pytest.raises(CoordinatorRunningError, match=r"has it in .* and still runs; end it first$"):
        CoordinatorLock(ledger.database, "one", "has it")
    forced = CoordinatorLock(ledger.database, "one", "has it", force=True)
    forced.release()
    forced.release()
    held.release()
    CoordinatorLock(ledger.database, "one", "has it").release()


def test_a_term_that_cannot_begin_leaves_the_ledger_to_others(url: str, ledger: Ledger) -> None:
    with Ledger.open(url) as second:
        with ledger.database.write() as connection:
            connection.execute(sa.text("ALTER TABLE fence RENAME TO away"))
        with pytest.raises(LedgerError, match="cannot be taken"):
            ledger.take()
        with ledger.database.write() as connection:
            connection.execute(sa.text("ALTER TABLE away RENAME TO fence"))
        second.take()
        second.ready()
