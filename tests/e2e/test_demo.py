"""The main job for real: Ray, vLLM, two FSDP2 ranks, and real media."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from omni_rl.config import SMALL_CHECKPOINT, DemoSettings
from omni_rl.demo.pair import demo_pair
from omni_rl.demo.report import StepReport
from omni_rl.demo.run import run
from omni_rl.kinds import KINDS

pytestmark = pytest.mark.slow

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


@pytest.fixture
def mark() -> Iterator[str]:
    """A value that every process started with it in its environment carries; nothing of it may outlive the test."""
    value = uuid.uuid4().hex
    yield value
    for pid in marked(value):
        os.kill(pid, signal.SIGKILL)


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


def demo(mark: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "omni_rl", "demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {MARK: mark})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_demo_agrees_and_leaves_a_report(dtype: str, tmp_path: Path, mark: str) -> None:
    done = demo(mark, "--dtype", dtype, "--steps", "3", "--out", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads((tmp_path / "report.json").read_text())
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
            if dtype == "float32":
                assert metrics["logprob_abs_diff_mean"] <= 1e-5
                assert metrics["logprob_abs_diff_max"] <= 1e-4
            else:
                assert metrics["token_mult_prob_error"] <= 1.05
                assert metrics["logprob_abs_diff_mean"] > 1e-4  # two bfloat16 implementations are never this equal
    assert set(report["legs"]) == {"train_vs_prefill", "prefill_vs_decode", "batch_vs_alone"}
    assert none_left(mark, within=10)


@pytest.mark.parametrize("phase", ["sampling", "scoring"])
def test_ctrl_c_ends_every_process(tmp_path: Path, mark: str, phase: str) -> None:
    command = [sys.executable, "-m", "omni_rl", "demo", "--out", str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {MARK: mark}, start_new_session=True
    ) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if line.startswith(f"step 0: {phase}"))
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does
        assert process.wait(timeout=60) == 130
    assert none_left(mark, within=10)
    assert not (tmp_path / "report.json").exists()


class Lines:
    """Keeps what the run says."""

    def __init__(self) -> None:
        self.steps: list[StepReport] = []

    def phase(self, step: int, phase: str) -> None: ...
    def step(self, report: StepReport) -> None:
        self.steps.append(report)


def test_weights_that_never_arrived_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync that reports success and moves nothing: the fault that the demo exists to catch."""
    settings = DemoSettings(steps=2, prompts_per_kind=2, model=SMALL_CHECKPOINT)
    lines = Lines()
    with demo_pair(settings) as pair:
        monkeypatch.setattr(pair, "sync", lambda: None)
        report = run(settings, pair, lines)
    assert [step.verdict for step in lines.steps] == ["agree", "disagree"]
    assert not report.agreed
    breaches = report.steps[1].breaches
    # Versions give it away at once; without them the logprobs, or routers that part by more than a tie, would.
    assert any("logprob_abs_diff" in breach or "flip_margin_max" in breach for breach in breaches)
    assert any("sampled under demo-" in breach for breach in breaches)
