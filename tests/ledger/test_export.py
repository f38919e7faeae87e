"""A run's Parquet files say what the ledger says."""

import contextlib
import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_array_equal

from omni_rl.errors import LedgerError, NotFoundError
from omni_rl.ledger.export import export
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.schema import SCHEMA
from omni_rl.ledger.sync_journal import LedgerJournal
from omni_rl.ledger.tables import FIGURES
from omni_rl.ledger.types import KeptSample, NewEvent, NewIncident, NewState, SortKeys, StepKey

from .steps import records, sealed


def rows(path: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = pq.read_table(path).to_pylist()
    return found


def test_every_file_says_what_the_ledger_says(ledger: Ledger, tmp_path: Path) -> None:
    for name in ("run", "other"):
        ledger.put_run(name, {}).result()
    broken = records().to_json()["records"]
    broken[0]["train_logprobs"][0] = math.nan
    for number, part in enumerate((records(), StepRecords.of(broken), records(seed=3))):
        after = NewState({}, SortKeys(1), (NewEvent("severity", {"n": number}, "run"),))
        sealed(ledger, StepKey("run", 0, number), part, training={"reward": 0.5}, flips=(1, 2), after=after)
    sealed(ledger, StepKey("run", 1, 2), records(seed=4))
    sealed(ledger, StepKey("other", 0, 0), records(seed=9))
    journal = LedgerJournal(ledger, "run")
    epoch = journal.next_epoch(None)
    journal.begin("sync", "key", epoch, "/a", "recompute")
    journal.decide("sync", epoch, "abort")
    journal.finish("sync", epoch, {"outcome": "rolled_back"})
    journal.close()
    probe = ledger.add_check({"severity": "ok", "legs": {"batch_vs_alone": {"text": {"tokens": 3}}}}).result()
    check = ledger.add_check({"severity": "pause", "cause": "kernel"}, StepKey("run", 1, 2)).result()
    ledger.add_check({"severity": "pause"}, StepKey("other", 0, 0)).result()

    paths = {path.stem: path for path in export(ledger, "run", tmp_path / "out")}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in paths.values())

    steps = rows(paths["steps"])
    assert [(row["attempt"], row["step"]) for row in steps] == [(0, 0), (0, 1), (0, 2), (1, 2)]
    assert json.loads(str(steps[0]["training"])) == {"reward": 0.5}
    assert json.loads(str(steps[0]["flips"])) == [1, 2]
    figures = [row for row in rows(paths["figures"]) if row["kind"] == "overall"]
    known = [*ledger.steps("run", 0), *ledger.steps("run", 1)]
    assert_array_equal(
        [[row[name] for name in FIGURES] for row in figures],
        [[getattr(row.figures, name) for name in FIGURES] for row in known],
    )
    assert math.isnan(float(str(figures[1]["gen_kl_error"])))
    bins = [row for row in rows(paths["bins"]) if (row["attempt"], row["step"]) == (0, 0)]
    assert len(bins) == sum(len(found) for found in ledger.step(StepKey("run", 0, 0)).by_position.values())

    samples = pq.read_table(paths["samples"])
    assert samples.schema.names[5:] == SCHEMA.names
    for row in samples.to_pylist():
        kept = ledger.sample(StepKey("run", row["attempt"], row["step"]), row["sample"], row["rank"])
        assert kept.kept.place == row["place"]
        assert_array_equal(row["train_logprobs"], kept.record.columns.train_logprobs)
    assert len(samples) == 8

    assert [json.loads(str(row["data"]))["n"] for row in rows(paths["events"])] == [0, 1, 2]
    assert [(row["sync"], row["decision"], row["key"]) for row in rows(paths["syncs"])] == [("sync", "abort", "key")]
    checks = rows(paths["checks"])
    where = [(row["id"], row["run"], row["attempt"], row["step"]) for row in checks]
    assert where == [(probe.id, None, None, None), (check.id, "run", 1, 2)]
    assert [json.loads(str(row["found"])) for row in checks] == [probe.found, check.found]


def test_a_run_without_steps_gives_empty_files(ledger: Ledger, tmp_path: Path) -> None:
    ledger.put_run("run", {}).result()
    for path in export(ledger, "run", tmp_path / "new" / "directory"):
        assert rows(path) == []


def test_what_cannot_be_exported(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no run run"):
        export(ledger, "run", tmp_path)
    ledger.put_run("run", {}).result()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LedgerError, match="cannot be written"):
        export(ledger, "run", tmp_path / "file")


def test_a_run_between_others_is_exported_alone(ledger: Ledger, tmp_path: Path) -> None:
    for number, run in enumerate("amz"):
        ledger.put_run(run, {}).result()
        ledger.add_event("tick", {"of": run}, run)
        ledger.see_incident(run, NewIncident(1, run, kind="engine"))
        ledger.add_check({"of": run}, StepKey(run, 0, 1))
        sealed(ledger, StepKey(run, 0, 1), records(seed=number, rows=1), worst=1)
        with contextlib.closing(LedgerJournal(ledger, run)) as journal:
            for name in (f"{run}-1", f"{run}-2"):
                journal.begin(name, None, journal.next_epoch(None), "/a", "drain")
            journal.decide(f"{run}-1", 2, "commit")
    files = {path.stem: rows(path) for path in export(ledger, "m", tmp_path / "out")}
    assert [json.loads(str(row["data"])) for row in files["events"] if row["kind"] == "tick"] == [{"of": "m"}]
    assert [row["headline"] for row in files["incidents"]] == ["m"]
    assert [row["run"] for row in files["checks"]] == ["m"]
    assert [(row["sync"], row["decision"]) for row in files["syncs"]] == [("m-1", "commit"), ("m-2", None)]
    assert [len(files[name]) for name in ("steps", "samples")] == [1, 1]
    assert {"why", "run", "evidence"} < files["incidents"][0].keys()
    assert "told" not in files["incidents"][0], "which webhooks there are is nobody else's"


def test_what_is_written_a_few_rows_at_a_time_is_the_same(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.put_run("run", {}).result()
    for number in range(3):
        sealed(ledger, StepKey("run", 0, number), records(seed=number), records(seed=number, rank=1), worst=3)
    whole = {path.name: pq.read_table(path) for path in export(ledger, "run", tmp_path / "whole")}
    monkeypatch.setattr("omni_rl.ledger.export.ROWS", 2)
    monkeypatch.setattr("omni_rl.ledger.export.SAMPLES", 2)
    for path in export(ledger, "run", tmp_path / "few"):
        assert pq.read_table(path).equals(whole[path.name])
    samples = whole["samples.parquet"].select(["attempt", "step", "place", "rank", "sample"]).to_pylist()
    kept = [(step, one.place, one.rank, one.sample) for step in range(3) for one in stored(ledger, step)]
    assert [(row["step"], row["place"], row["rank"], row["sample"]) for row in samples] == kept
    figures = [json.loads(text) for text in whole["samples.parquet"]["figures"].to_pylist()]
    assert figures == [one.figures for step in range(3) for one in stored(ledger, step)]


def stored(ledger: Ledger, step: int) -> tuple[KeptSample, ...]:
    return ledger.step(StepKey("run", 0, step)).samples


def test_a_file_is_replaced_whole_or_left_as_it_was(ledger: Ledger, tmp_path: Path) -> None:
    ledger.put_run("run", {}).result()
    paths = export(ledger, "run", tmp_path)
    sealed(ledger, StepKey("run", 0, 0), records())
    assert len(rows(export(ledger, "run", tmp_path)[0])) == 1
    (in_the_way,) = (path for path in paths if path.stem == "bins")
    in_the_way.unlink()
    in_the_way.mkdir()
    sealed(ledger, StepKey("run", 0, 1), records())
    with pytest.raises(LedgerError, match=f"{tmp_path} cannot be written: Is a directory"):
        export(ledger, "run", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} - {"ledger.db", "ledger.db-wal", "ledger.db-shm"} == {
        path.name for path in paths
    }
