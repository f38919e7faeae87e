"""Writes that share a transaction stand or fall alone, whatever ends it; on SQLite and on PostgreSQL."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from omni_rl.errors import LedgerError
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.tables import runs
from omni_rl.ledger.writer import Refusal
from tests.ledgers import new_ledger, open_ledger
from tests.postgres import Postgres


@contextmanager
def together(ledger: Ledger) -> Iterator[None]:
    """What is written in this block waits, and is then tried in one transaction."""
    begun, go = threading.Event(), threading.Event()

    def first(connection: sa.Connection) -> None:
        begun.set()
        assert go.wait(30)

    before = ledger.writer.submit(first)
    assert begun.wait(30)
    try:
        yield
    finally:
        go.set()
        before.result()


def registered(run: str, then: Callable[[sa.Connection], object] = lambda connection: None) -> Any:
    """A write that registers a run, and then does something else."""

    def operation(connection: sa.Connection) -> str:
        connection.execute(sa.insert(runs), {"run": run, "created": 1.0, "config": {}})
        then(connection)
        return run

    return operation


def names(ledger: Ledger) -> list[str]:
    return [run.run for run in ledger.to_remember(100)]


@pytest.mark.parametrize("beside", ["b", "bc"])
def test_what_a_write_raises_undoes_it_and_no_other(ledger: Ledger, beside: str) -> None:
    def fail(connection: sa.Connection) -> None:
        raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="of its own"):
        ledger.writer.submit(registered("alone", fail)).result()
    with together(ledger):
        failing = ledger.writer.submit(registered("a", fail))
        writes = [ledger.writer.submit(registered(run)) for run in beside]
    assert [write.result() for write in writes] == list(beside)
    with pytest.raises(RuntimeError, match="of its own"):
        failing.result()
    assert names(ledger) == list(beside)


def test_what_the_database_refuses_of_a_write_undoes_it_and_no_other(ledger: Ledger) -> None:
    with together(ledger):
        writes = [ledger.writer.submit(registered(run)) for run in ("a", "b", "a", "c")]
    assert [write.result() for write in writes[:2]] == ["a", "b"]
    with pytest.raises(LedgerError, match="cannot be written"):
        writes[2].result()
    assert writes[3].result() == "c"
    assert names(ledger) == ["a", "b", "c"]
    assert ledger.writer.refusal is None, "the disk took all that could be written"


def test_a_statement_that_is_wrong_is_a_refusal_of_this_write_alone(ledger: Ledger) -> None:
    with together(ledger):
        wrong = ledger.writer.submit(registered("a", lambda connection: connection.execute(sa.text("SELECT no_such"))))
        right = ledger.writer.submit(registered("b"))
    assert isinstance(wrong.exception(), LedgerError)
    assert right.result() == "b"
    tried: list[int] = []

    def fail(connection: sa.Connection) -> None:
        tried.append(1)
        connection.execute(sa.text("SELECT no_such"))

    assert isinstance(ledger.writer.submit(fail).exception(), LedgerError)
    assert tried == [1], "the connection is there: it would be wrong again"
    assert names(ledger) == ["b"]


def test_a_write_that_is_taken_back_in_time_is_not_done(ledger: Ledger) -> None:
    with together(ledger):
        writes = [ledger.writer.submit(registered(run)) for run in "abc"]
        assert writes[1].cancel()
    assert (writes[0].result(), writes[2].result()) == ("a", "c")
    assert names(ledger) == ["a", "c"]


def test_whoever_closes_a_ledger_twice_closes_it_once(url: str) -> None:
    ledger = open_ledger(url)
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerError, match="the ledger is closed"):
        ledger.put_run("run", {})


def test_a_refusal_is_forgotten_after_five_seconds() -> None:
    assert Refusal(time.monotonic(), "").is_fresh
    assert Refusal(time.monotonic() - 4.5, "").is_fresh
    assert not Refusal(time.monotonic() - 5.0, "").is_fresh


def ended(times: int) -> Callable[[sa.Connection], None]:
    """What ends its own connection to PostgreSQL, so many times."""
    left = [None] * times

    def end(connection: sa.Connection) -> None:
        if left:
            left.pop()
            connection.execute(sa.text("SELECT pg_terminate_backend(pg_backend_pid())"))

    return end


@pytest.mark.parametrize("others", [0, 2])
def test_a_write_whose_connection_is_lost_before_its_commit_is_tried_again(postgres: Postgres, others: int) -> None:
    with open_ledger(new_ledger(postgres)) as ledger:
        with together(ledger):
            writes = [ledger.writer.submit(registered("run", ended(1)))]
            writes += [ledger.writer.submit(registered(f"other-{number}")) for number in range(others)]
        assert [write.result() for write in writes] == ["run", *(f"other-{number}" for number in range(others))]
        assert len(ledger.to_remember(100)) == 1 + others
        assert ledger.writer.refusal is None


def test_a_write_whose_connection_is_lost_again_is_refused(postgres: Postgres) -> None:
    with open_ledger(new_ledger(postgres)) as ledger:
        with pytest.raises(LedgerError, match="cannot be written: terminating connection"):
            ledger.writer.submit(registered("run", ended(2))).result()
        assert ledger.writer.refusal is not None
        assert "another process" not in ledger.writer.refusal.reason
        assert "terminating connection" in ledger.writer.refusal.reason
        assert ledger.writer.refusal.is_fresh
        assert names(ledger) == []
        assert ledger.put_run("run", {}).result() == "new"


@pytest.mark.parametrize("count", [1, 2])
def test_a_write_whose_connection_is_lost_at_its_commit_is_not_tried_again(postgres: Postgres, count: int) -> None:
    """Whether it counts is not known: to do it again might do it twice."""
    url = new_ledger(postgres)
    tried: list[str] = []
    with open_ledger(url) as ledger:

        def lose(connection: sa.Connection) -> None:
            if tried and connection.engine is engine:
                pid = connection.connection.driver_connection.info.backend_pid  # type: ignore[union-attr]
                server = f"host={postgres.directory} user=postgres dbname=postgres"
                with psycopg.connect(server, autocommit=True) as other:
                    other.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])

        with ledger.database.write() as connection:
            engine = connection.engine
        sa.event.listen(engine, "commit", lose)
        try:
            with together(ledger):
                writes = [
                    ledger.writer.submit(registered(f"run-{number}", lambda connection: tried.append("once")))
                    for number in range(count)
                ]
            for write in writes:
                with pytest.raises(LedgerError, match="cannot be written"):
                    write.result()
        finally:
            sa.event.remove(engine, "commit", lose)
        assert tried == ["once"] * count
        assert ledger.put_run("after", {}).result() == "new"


def test_where_the_lock_is_not_to_be_had_all_that_wait_hear_of_it_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process stands in the midst of a write."""
    with open_ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        tried = 0
        write = ledger.database.write

        @contextmanager
        def locked() -> Iterator[sa.Connection]:
            nonlocal tried
            tried += 1
            with write() as connection:
                if tried > 1:
                    raise sa.exc.OperationalError("BEGIN IMMEDIATE", None, Exception("database is locked"))
                yield connection

        monkeypatch.setattr(ledger.database, "write", locked)
        with together(ledger):
            waiting = [ledger.writer.submit(registered(name)) for name in "abcdef"]
        for one in waiting:
            with pytest.raises(LedgerError, match="database is locked"):
                one.result(30)
        assert tried == 2
