"""A run and a coordinator of different versions of omni-rl: no run is lost for that, and what is left out is said."""

import subprocess
import sys
from pathlib import Path
from typing import cast

import pyarrow as pa
import pytest

from omni_rl.api.runs import CorrectionBody, RunBody
from omni_rl.client import Client
from omni_rl.errors import InvalidRequestError, RecordError
from omni_rl.ledger.records import StepRecords
from omni_rl.watch.table import StepValues, step_rows
from tests.services.live import live
from tests.watch.conftest import CoordinatorProcess
from tests.watch.steps import step_of

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_newer_run_is_judged_by_what_its_coordinator_knows(coordinator: CoordinatorProcess) -> None:
    coordinator.start()
    command = [sys.executable, "tests/watch/newer_run.py", coordinator.url, "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}, timeout=120)
    assert done.stdout == "3\n", done.stderr
    told = [line for line in done.stderr.splitlines() if "does not know" in line]
    assert [line.partition("does not know ")[2].partition(", which")[0] for line in told] == [
        "watched_since, smoothing",
        "mood, weather",
    ]
    assert "the coordinator (omni-rl 0.1.0)" in told[0]
    with Client(coordinator.url) as client:
        assert [(line.step, line.severity) for line in client.steps("newer")] == [(0, "ok"), (1, "ok"), (2, "ok")]
        assert client.run("newer").config.correction == CorrectionBody(method="none")
        kept = client.sample("newer", 1, 2, client.step("newer", 1, 2).verdict.worst[0].sample).record
        assert len(kept["ids"]) == len(kept["rollout_logprobs"])


def test_who_did_not_ask_for_it_is_refused_by_name(tmp_path: Path) -> None:
    class Newer(RunBody):
        watched_since: str = "the first step"

    records = StepRecords.of(step_rows(cast(StepValues, step_of(0))))
    newer = StepRecords(records.table.append_column("mood", pa.nulls(len(records), pa.float64()).fill_null(0.0)))
    said: list[str] = []
    with live(tmp_path) as url, Client(url) as strict, Client(url, leave_out=said.append) as lenient:
        with pytest.raises(InvalidRequestError, match="watched_since"):
            strict.create_run(Newer(run="mine", model="model", dtype="float32"))
        lenient.create_run(Newer(run="mine", model="model", dtype="float32"))
        with pytest.raises(RecordError, match="unknown columns mood"):
            strict.put_part("mine", 1, 0, 0, newer)
        # What is wrong in what the coordinator does know stays an error.
        with pytest.raises(InvalidRequestError, match="silent_after"):
            lenient.create_run(Newer.model_construct(run="mine", model="model", dtype="float32", silent_after=-1.0))
        assert lenient.put_part("mine", 1, 0, 0, newer).stored == "new"
    assert [line.partition("does not know ")[2].partition(", which")[0] for line in dict.fromkeys(said)] == [
        "watched_since",
        "mood",
    ]
