"""The main job for real: Ray, vLLM, two FSDP2 ranks, and real media."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from omni_rl.api.steps import StepLine
from omni_rl.api.syncs import SyncAnswer
from omni_rl.client.blocking import Client
from omni_rl.kinds import KINDS
from tests.pinned.kept_meaning import assert_agrees, lost_shape
from tests.pinned.pinned_files import pinned_json

pytestmark = pytest.mark.slow

DEMO = (str(Path(sys.executable).parent / "omni-rl"), "demo")
MARK = "OMNI_RL_TEST_MARK"
METRICS = {
    "tokens",
    "logprob_abs_diff_mean",
    "logprob_abs_diff_max",
    "logprob_abs_diff_p50",
    "logprob_abs_diff_p99",
    "gen_kl_error",
    "policy_kl_error",
    "token_mult_prob_error",
    "router_flips",
    "excluded_tokens",
}


def marked(value: str) -> list[int]:
    """Processes, zombies apart, that inherited the mark."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if f"{MARK}={value}".encode() in environment.split(b"\0"):
            found.append(int(entry.name))
    return found


def none_left(value: str, within: float) -> bool:
    deadline = time.monotonic() + within
    while marked(value) and time.monotonic() < deadline:
        time.sleep(0.2)
    return not marked(value)


@dataclass
class Ran:
    """A demo that ended: what it printed and wrote, and the mark of its processes."""

    printed: str
    out: Path
    mark: str


@dataclass
class Served(Ran):
    """A demo that was served until Ctrl-C: what its dashboard had, and its exit code."""

    steps: list[StepLine]
    syncs: list[SyncAnswer]
    code: int


@contextlib.contextmanager
def marking() -> Iterator[str]:
    """A value that every process started with it in its environment carries; nothing of it outlives the context."""
    value = uuid.uuid4().hex
    yield value
    for pid in marked(value):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def mark() -> Iterator[str]:
    with marking() as value:
        yield value


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Three steps in float32, with the dashboard that stays until Ctrl-C."""
    out = tmp_path_factory.mktemp("served")
    command = [*DEMO, "--serve", "--dtype", "float32", "--steps", "3", "--json", "--out", str(out)]
    with marking() as mark, (out / "printed").open("w+") as printed:
        environment = {**os.environ, MARK: mark, "OMNI_RL_DEMO__PORT": "0"}
        with subprocess.Popen(command, stdout=printed, stderr=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stderr is not None
            try:
                stays = (re.search(r"the dashboard stays at (\S+)/#run=(\S+)", line) for line in process.stderr)
                found = next(match for match in stays if match)
                with Client(found[1]) as client:
                    steps, syncs = client.steps(found[2]), client.syncs()
                process.send_signal(signal.SIGINT)
                code = process.wait(60)
            finally:
                process.kill()
        yield Served((out / "printed").read_text(), out, mark, steps, syncs, code)


def test_the_served_demo_agrees_and_leaves_a_report(served: Served) -> None:
    report = report_of(served, "float32")
    for step in report["steps"]:
        for metrics in step["by_modality"].values():
            assert metrics["logprob_abs_diff_mean"] <= 1e-5
            assert metrics["logprob_abs_diff_max"] <= 1e-4


def test_its_dashboard_stays_up_with_the_run_until_ctrl_c(served: Served) -> None:
    assert [(line.step, line.severity) for line in served.steps] == [(0, "ok"), (1, "ok"), (2, "ok")]
    assert served.syncs[0].outcome == "committed"
    assert served.code == 0


def test_it_prints_the_report_that_version_0_1_0_did(served: Served) -> None:
    """That report had one step, which is like the last one here: the legs follow it."""
    now = json.loads(served.printed)
    assert_agrees(now)
    assert lost_shape(pinned_json("report.json"), {**now, "steps": now["steps"][-1:]}) == []


def test_the_demo_agrees_in_bfloat16(tmp_path: Path, mark: str) -> None:
    command = [*DEMO, "--dtype", "bfloat16", "--steps", "3", "--out", str(tmp_path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {MARK: mark})
    assert done.returncode == 0, done.stderr
    report = report_of(Ran(done.stdout, tmp_path, mark), "bfloat16")
    for step in report["steps"]:
        for metrics in step["by_modality"].values():
            assert metrics["token_mult_prob_error"] <= 1.05
            assert metrics["logprob_abs_diff_mean"] > 1e-4  # two bfloat16 implementations are never this equal


def report_of(ran: Ran, dtype: str) -> Any:
    """The report, once what any dtype's has to have is there, and no process is left."""
    report = json.loads(ran.printed)
    assert report == json.loads((ran.out / "report.json").read_text())
    assert report["schema"] == 1
    assert report["dtype"] == dtype
    assert report["engine"] == {"name": "vllm", "version": "0.32.0"}
    assert report["train"] == {"world_size": 2, "sharding": "fsdp2"}
    assert len({step["weight_version"] for step in report["steps"]}) == 3
    for step in report["steps"]:
        assert step["verdict"] == "agree"
        assert set(step["by_modality"]) == set(KINDS)
        for metrics in (step["overall"], *step["by_modality"].values()):
            assert set(metrics) == METRICS
        for metrics in step["by_modality"].values():
            assert metrics["tokens"] + metrics["excluded_tokens"] == 8 * 32
    assert set(report["legs"]) == {"train_vs_prefill", "prefill_vs_decode", "batch_vs_alone"}
    assert none_left(ran.mark, within=10)
    return report


@pytest.mark.parametrize("phase", ["sampling", "scoring"])
def test_ctrl_c_ends_every_process(tmp_path: Path, mark: str, phase: str) -> None:
    command = [*DEMO, "--out", str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {MARK: mark}, start_new_session=True
    ) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if line.startswith(f"step 0: {phase}"))
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does
        assert process.wait(timeout=60) == 130
    assert none_left(mark, within=10)
    assert not (tmp_path / "report.json").exists()
