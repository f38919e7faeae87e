"""The demo's terminal, its report and the coordinator judge a step alike."""

import io
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omni_rl_services.coordinator.judging import judge_step
from rich.console import Console

from omni_rl.api.runs import RunBody
from omni_rl.config import DemoSettings
from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.limits import Severity, limits_for
from omni_rl.consistency.posted.history import History
from omni_rl.consistency.posted.step import PostedStep
from omni_rl.consistency.posted.verdict import judge_posted
from omni_rl.consistency.records import SampleRecord
from omni_rl.consistency.yardstick import Yardstick
from omni_rl.demo.display import closing, live
from omni_rl.demo.report import StepReport
from omni_rl.demo.run import run
from omni_rl.jobs.records import record_of
from omni_rl.jobs.run import StepAnswers
from omni_rl.kinds import KINDS
from omni_rl.ledger.records import StepRecords
from omni_rl.rollout.settings import Dtype
from omni_rl.train.types import Score
from tests.demo.test_demo_loop import FakePolicies
from tests.services.conftest import Served
from tests.services.posted import ARROW

PER_KIND, TOKENS = 2, 32
LAYERS, CHOSEN = 2, 2


class Records:
    """Keeps what the demo would post."""

    def __init__(self) -> None:
        self.kept: list[dict[str, Any]] = []

    def judge(self, step: int, answers: StepAnswers, training: Mapping[str, float]) -> tuple[None, None]:
        sides = zip(answers.prompts, answers.rollouts, answers.scores, strict=True)
        self.kept = [record_of(prompt, rollout, score, None, [], str) for prompt, rollout, score in sides]
        return None, None

    def learnt(self, step: int, training: Mapping[str, float]) -> None:
        raise AssertionError("nothing is learnt from a run's only step")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("dtype", "kind", "error", "severity"),
    [
        ("bfloat16", "audio", 1.066, "ok"),
        ("bfloat16", "text", 1.066, "warn"),
        ("bfloat16", "video", 1.3, "mask"),
        ("float32", "mixed", 1.00005, "warn"),
    ],
)
async def test_a_step_has_one_verdict_wherever_it_is_looked_at(
    served: Served, tmp_path: Path, dtype: Dtype, kind: str, error: float, severity: str
) -> None:
    """`error` is the kind's token_mult_prob_error, which NeMo RL's limit of 1.05 alone would decide."""

    # On both sides of the engine's: what only rises, or only falls, is no policy's.
    signs = np.random.default_rng(0).permutation(np.repeat([-1.0, 1.0], TOKENS // 2))

    def spoil(step: int, scores: list[Score]) -> list[Score]:
        return [
            replace(score, logprobs=score.logprobs + math.log(error) * signs) if KINDS[n // PER_KIND] == kind else score
            for n, score in enumerate(scores)
        ]

    asked = DemoSettings(steps=1, prompts_per_kind=PER_KIND, max_tokens=TOKENS, dtype=dtype)
    console, records = Console(file=io.StringIO(), width=160), Records()
    with live(console, limits_for(dtype), 1) as display:
        report = run(asked, FakePolicies(spoil), display, records)
    written = report.write(tmp_path)
    closing(console, report, limits_for(dtype), str(written))

    await served.http.post("/v1/runs", json={"run": "demo", "model": "small", "dtype": dtype})
    step = "/v1/runs/demo/attempts/1/steps/0"
    body = StepRecords.of(records.kept).to_arrow()
    await served.http.put(f"{step}/parts/0", content=body, headers={"Content-Type": ARROW})
    sealed = (await served.http.post(f"{step}/seal", json={})).json()

    assert sealed["severity"] == severity
    assert sealed["figures"][kind]["token_mult_prob_error"] == pytest.approx(error, abs=1e-5)
    word = "agree" if severity == "ok" else "disagree"
    stored = json.loads(written.read_text())
    assert (stored["verdict"], stored["steps"][0]["verdict"]) == (word, word)
    assert [breach.split(": ")[1] for breach in stored["breaches"]] == [each["kind"] for each in sealed["breaches"]]
    assert isinstance(console.file, io.StringIO)
    (row,) = [line for line in console.file.getvalue().splitlines() if line.split()[:1] == [kind]]
    assert row.split()[-1] == word
    assert ("every step agreed" in console.file.getvalue()) == (word == "agree")


def step_of(rng: np.random.Generator, dtype: Dtype) -> list[SampleRecord]:
    """A few answers of a few kinds, some of them apart, some routed otherwise."""
    noise = {"float32": 1e-7, "bfloat16": 1e-2}[dtype] * 10.0 ** rng.uniform(-1, 2)
    records = []
    for number in range(rng.integers(1, 12)):
        prompt, tokens = int(rng.integers(1, 5)), int(rng.integers(1, 60))
        rollout = -rng.exponential(1.0, tokens)
        train = rollout + rng.normal(0, noise, tokens)
        if rng.random() < 0.05:
            train[0] = rng.choice([np.nan, -np.inf])
        shape = (prompt + tokens - 1, LAYERS, CHOSEN)
        engine = np.tile(np.arange(CHOSEN, dtype=np.int16), (*shape[:2], 1))
        trainer = engine.copy()
        trainer[rng.random(shape[0]) < rng.choice([0.0, 0.02, 0.5]), 0, 0] = 7
        margins = np.full(shape[:2], 10.0 ** rng.uniform(-7, 0), np.float32)
        kind = str(rng.choice(KINDS))
        records.append(SampleRecord(f"s{number}", kind, prompt, rollout, train, engine, trainer, margins))
    return records


def posted(record: SampleRecord) -> dict[str, Any]:
    assert record.rollout_experts is not None
    assert record.train_experts is not None
    assert record.margins is not None
    return {
        "sample": record.sample,
        "kind": record.kind,
        "prompt_tokens": record.prompt_tokens,
        "rollout_logprobs": record.rollout_logprobs,
        "train_logprobs": record.train_logprobs,
        "moe_layers": LAYERS,
        "experts_per_token": CHOSEN,
        "rollout_experts": record.rollout_experts.reshape(-1),
        "train_experts": record.train_experts.reshape(-1),
        "margins": record.margins.reshape(-1),
    }


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from(["float32", "bfloat16"]))
def test_the_demo_agrees_where_the_service_says_ok_and_nowhere_else(seed: int, dtype: Dtype) -> None:
    records = step_of(np.random.default_rng(seed), dtype)
    run_body, columns = RunBody(run="r", model="m", dtype=dtype), StepColumns.of(records)
    judged = judge_posted(columns, PostedStep.of(columns), Yardstick.of(dtype, lag=run_body.lag), History())
    there = StepReport.of(0, "v", 0.0, judged)
    parts = {0: StepRecords.of([posted(record) for record in records])}
    here = judge_step(parts, run_body.judged_by(), History(), 2).judgement
    assert there.verdict == ("agree" if here.severity is Severity.OK else "disagree")
    wrong = [*map(str, here.breaches), *(one.sentence for one in here.concerns)]
    assert list(there.breaches) == (wrong or ([] if here.severity is Severity.OK else [here.reason]))
