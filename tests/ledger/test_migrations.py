"""Ledgers of every age open: empty, older ones with their steps, and newer ones are refused untouched."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from numpy.testing import assert_array_equal

from omni_rl.errors import LedgerVersionError
from omni_rl.ledger import database
from omni_rl.ledger.database import Database
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.migrations import upgrade
from omni_rl.ledger.migrations.versions import r0001_ledger
from omni_rl.ledger.tables import metadata
from omni_rl.ledger.types import StepKey
from tests.ledger.steps import records


def columns(connection: sa.Connection) -> dict[str, list[str]]:
    inspector = sa.inspect(connection)
    return {
        name: [column["name"] for column in inspector.get_columns(name)]
        for name in sorted(inspector.get_table_names())
        if name != "alembic_version"
    }


@pytest.fixture
def url(ledger_url: str) -> str:
    """The URL of a database that has no tables yet."""
    return ledger_url


def test_an_empty_database_gets_the_tables_that_the_code_knows(url: str) -> None:
    with Ledger.open(url) as ledger, ledger.database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        assert columns(connection) == {
            name: [column.name for column in table.columns] for name, table in sorted(metadata.tables.items())
        }
        inspector = sa.inspect(connection)
        for name, table in metadata.tables.items():
            assert inspector.get_pk_constraint(name)["constrained_columns"] == table.primary_key.columns.keys()
            keys = {tuple(key["constrained_columns"]): key["options"] for key in inspector.get_foreign_keys(name)}
            assert {columns: options.get("ondelete") for columns, options in keys.items()} == {
                tuple(key.column_keys): key.ondelete for key in table.foreign_key_constraints
            }


@pytest.mark.parametrize("apart", [1, 4, 400_000])
def test_a_ledger_of_the_first_schema_keeps_its_steps_and_gets_its_charts(url: str, apart: int) -> None:
    """That holds however far apart the steps' numbers are."""
    old = Database(url)
    upgrade(old, "r0001")
    values = np.random.default_rng(0).random(3000)
    values[1234] = 77.0
    with old.write() as connection:
        connection.execute(sa.text("INSERT INTO runs (run, created, config) VALUES ('run', 1.0, '{}')"))
        connection.execute(sa.text("INSERT INTO attempts (id, run, attempt, started) VALUES (1, 'run', 0, 1.0)"))
        connection.execute(
            sa.text(
                "INSERT INTO steps (attempt_id, step, sealed, digest, severity, samples, tokens, weight_version, "
                "verdict, training) VALUES (1, :step, 1.0, '', 0, 1, 9, '', '{}', '{}')"
            ),
            [{"step": apart * step} for step in range(3000)],
        )
        first = r0001_ledger.FIGURES
        names = ", ".join(first)
        marks = ", ".join("9" if name in r0001_ledger.INTEGERS else ":value" for name in first)
        connection.execute(
            sa.text(f"INSERT INTO figures (attempt_id, kind, step, {names}) VALUES (1, 'overall', :step, {marks})"),
            [{"step": apart * step, "value": value} for step, value in enumerate(values.tolist())],
        )
    old.close()
    with Ledger.open(url) as ledger:
        assert_array_equal([row.figures.ess for row in ledger.steps("run", 0, limit=5000)], values)
        chart = ledger.timeline("run", 0, ["ess"])
        assert chart.width > apart
        assert chart.high["ess"].max() == 77.0
        with ledger.database.read() as connection:
            assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_a_newer_ledger_is_refused_and_left_alone(url: str) -> None:
    with Ledger.open(url) as ledger, ledger.database.write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = 'r9999'"))
    with pytest.raises(LedgerVersionError, match="has schema r9999, made by a newer omni-rl; this one knows up to"):
        Ledger.open(url)
    database = Database(url)
    with database.read() as connection:
        assert connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar() == "r9999"
    database.close()


def test_two_that_open_an_empty_ledger_at_once_both_get_it(url: str) -> None:
    errors: list[BaseException] = []

    def open_and_write(name: str) -> None:
        try:
            with Ledger.open(url) as ledger:
                ledger.put_run(name, {}).result()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=open_and_write, args=(f"run{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with Ledger.open(url) as ledger:
        assert {run.run for run in ledger.to_remember(100)} == {"run0", "run1", "run2", "run3"}


@pytest.mark.slow
def test_many_new_files_opened_by_several_at_once(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def open_and_close(url: str) -> None:
        try:
            Ledger.open(url).close()
        except BaseException as error:
            errors.append(error)

    for file in range(20):
        threads = [
            threading.Thread(target=open_and_close, args=(f"sqlite:///{tmp_path}/{file}.db",)) for opener in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []


def test_whoever_opens_a_ledger_waits_for_a_migration_that_takes_longer_than_a_write(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "LOCK_SECONDS", 1)
    migrating = Database(url)
    upgrade(migrating, "r0001")
    with ThreadPoolExecutor() as pool:
        with migrating.write():
            opening = pool.submit(Ledger.open, url)
            with pytest.raises(TimeoutError):
                opening.result(2.5)
        opening.result().close()
    migrating.close()


@pytest.mark.parametrize(
    ("step", "evidence", "kind"),
    [("NULL", '{"weights": {}}', "update"), ("3", '{"weights": {}}', "drift"), ("NULL", "{}", "drift")],
)
def test_an_alarm_of_an_older_ledger_is_an_incident_of_an_update_or_of_a_step(
    url: str, step: str, evidence: str, kind: str
) -> None:
    old = Database(url)
    upgrade(old, "r0005")
    with old.write() as connection:
        connection.execute(sa.text("INSERT INTO runs (run, created, config) VALUES ('run', 1.0, '{}')"))
        connection.execute(
            sa.text(
                "INSERT INTO alarms (id, run, attempt, step, opened, severity, cause, sentence, evidence, action) "
                f"VALUES (1, 'run', 0, {step}, 1.0, 2, NULL, 'as it was', :evidence, '')"
            ),
            {"evidence": evidence},
        )
    old.close()
    with Ledger.open(url) as ledger:
        (found,) = ledger.incidents(run="run")
        assert (found.kind, found.headline, found.ended) == (kind, "as it was", None)


def test_samples_of_an_older_ledger_are_those_of_rank_0(url: str) -> None:
    old = Database(url)
    upgrade(old, "r0003")
    kept = records(rows=2)
    with old.write() as connection:
        connection.execute(sa.text("INSERT INTO runs (run, created, config) VALUES ('run', 1.0, '{}')"))
        connection.execute(sa.text("INSERT INTO attempts (id, run, attempt, started) VALUES (1, 'run', 0, 1.0)"))
        connection.execute(
            sa.text(
                "INSERT INTO steps (attempt_id, step, sealed, digest, severity, samples, tokens, weight_version, "
                "verdict, training) VALUES (1, 3, 1.0, '', 0, 1, 9, '', '{}', '{}')"
            )
        )
        for place, name in enumerate(kept.samples):
            connection.execute(
                sa.text(
                    "INSERT INTO samples (attempt_id, step, sample, place, kind, figures, record) "
                    "VALUES (1, 3, :sample, :place, 'text', '{}', :record)"
                ),
                {"sample": name, "place": place, "record": kept.row(place).packed()},
            )
    old.close()
    with Ledger.open(url) as ledger:
        for place, name in enumerate(kept.samples):
            found = ledger.sample(StepKey("run", 0, 3), name, rank=0)
            assert found.record.to_json() == kept.row(place).to_json()
            assert found.kept.rank == 0
