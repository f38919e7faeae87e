"""The loop against hand-written policies: it must see every way in which the two sides can part."""

import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from omni_rl.config import DemoSettings
from omni_rl.consistency.limits import limits_for
from omni_rl.demo.display import live
from omni_rl.demo.report import Report, StepReport
from omni_rl.demo.run import run
from omni_rl.kinds import KINDS
from omni_rl.media.types import MediaItem, Prompt, RenderedPrompt
from omni_rl.policies.types import Placed
from omni_rl.rollout.types import Rescore, Rollout, SamplingSettings, VersionSpan
from omni_rl.train.settings import Objective
from omni_rl.train.targets import Targets
from omni_rl.train.types import Score, StepStats

SETTINGS = DemoSettings(steps=3, prompts_per_kind=2, max_tokens=8)
PROMPT_TOKENS = 5


class FakePolicies:
    """Two policies that agree to 1e-6, until `spoil` is called on what the trainer answers."""

    engine_version = "0"
    parameters = 7
    actors = (Placed("rollout-0", "127.0.0.1", "slab"),)

    def __init__(self, spoil: Callable[[int, list[Score]], list[Score]] = lambda step, scores: scores) -> None:
        self._spoil = spoil
        self._updates = 0
        self.weight_version = "run/1/0/aa"
        self.events: list[str] = []

    def render(self, prompts: Sequence[Prompt]) -> list[RenderedPrompt]:
        return [self._rendered(prompt) for prompt in prompts]

    def sample(self, prompts: Sequence[RenderedPrompt], sampling: SamplingSettings) -> list[Rollout]:
        self.events.append("sample")
        rng = np.random.default_rng(sampling.seed)
        return [self._answer(prompt, sampling.max_tokens, rng) for prompt in prompts]

    def score(self, rollouts: Sequence[Rollout], snapshot: str | None = None, *, replay: bool = False) -> list[Score]:
        self.events.append("score")
        scores = [
            Score(
                rollout.logprobs + 1e-6,
                rollout.experts,
                np.full((PROMPT_TOKENS + len(rollout.ids) - 1, 1), 0.1, np.float32),
                tuple(item.digests for item in rollout.prompt.items),
                self.weight_version,
            )
            for rollout in rollouts
        ]
        return self._spoil(self._updates, scores)

    def rescore(self, rollouts: Sequence[Rollout], *, alone: bool) -> list[Rescore]:
        self.events.append("rescore")
        return [Rescore(rollout.logprobs, rollout.experts) for rollout in rollouts]

    def update(
        self, rollouts: Sequence[Rollout], targets: Sequence[float | Targets], objective: Objective
    ) -> StepStats:
        self.events.append("update")
        assert len(targets) == len(rollouts)
        return StepStats(loss=0.0, grad_norm=1.0, tokens=sum(len(rollout.ids) for rollout in rollouts))

    def sync(self) -> None:
        self.events.append("sync")
        self._updates += 1
        self.weight_version = f"run/1/{self._updates}/aa"

    def decode(self, ids: NDArray[np.int64]) -> str:
        return "x" * len(ids)

    def take_snapshot(self, name: str) -> None:
        self.events.append("take_snapshot")

    def drop_snapshot(self, name: str) -> None:
        self.events.append("drop_snapshot")

    def _rendered(self, prompt: Prompt) -> RenderedPrompt:
        item = MediaItem("image", 0, 1, 2, np.array([1, 2]), {}, {"pixel_values_flat": "d" * 64}, "hash")
        items = () if prompt.kind == "text" else (item,)
        return RenderedPrompt(prompt.id, prompt.kind, np.arange(PROMPT_TOKENS), items, prompt.answer)

    def _answer(self, prompt: RenderedPrompt, tokens: int, rng: np.random.Generator) -> Rollout:
        experts = rng.integers(0, 8, (PROMPT_TOKENS + tokens - 1, 1, 2)).astype(np.int16)
        return Rollout(
            prompt,
            np.arange(tokens),
            -0.5 - rng.random(tokens),
            1.0,
            (VersionSpan(self.weight_version, 0, tokens),),
            tuple(item.digests for item in prompt.items),
            experts,
            "length",
        )


class Silent:
    """Nobody watches."""

    def phase(self, step: int, phase: str) -> None: ...
    def step(self, report: StepReport) -> None: ...


def spoilt_in_step_1(change: Callable[[Score], Score]) -> Report:
    def spoil(step: int, scores: list[Score]) -> list[Score]:
        return [change(scores[0]), *scores[1:]] if step == 1 else scores

    return run(SETTINGS, FakePolicies(spoil), Silent())


def test_agreement_is_reported_as_agreement() -> None:
    policies = FakePolicies()
    report = run(SETTINGS, policies, Silent())
    assert report.agreed
    assert [step.weight_version for step in report.steps] == [f"run/1/{n}/aa" for n in range(3)]
    assert set(report.steps[0].by_modality) == set(KINDS)
    assert policies.events == [*(["sample", "score", "update", "sync"] * 2), "sample", "score", "rescore", "rescore"]
    learnt, last = ["sample", "score", "learn", "update"], ["sample", "score", "legs"]
    assert [list(step.seconds) for step in report.steps] == [learnt, learnt, last]


def test_a_terminal_shows_each_phase_as_it_begins_and_each_step_when_it_is_over() -> None:
    console, settings = Console(file=io.StringIO(), width=120), SETTINGS.model_copy(update={"steps": 2})
    with live(console, limits_for("float32"), settings.steps) as display:
        run(settings, FakePolicies(), display)
    assert isinstance(console.file, io.StringIO)
    shown = [line.strip() for line in console.file.getvalue().splitlines() if line.startswith(("st", " st"))]
    assert [line.split("  ")[0] for line in shown] == [
        "starting Ray, vLLM and the trainer group",
        "step 0: sampling",
        "step 0: scoring the same tokens",
        "step 0: learning",
        "step 0: new weights into the engine",
        "step 0",
        "step 1: sampling",
        "step 1: scoring the same tokens",
        "step 1: three legs",
        "step 1",
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: replace(s, logprobs=s.logprobs + 0.1), "logprob_abs_diff_mean"),
        (lambda s: replace(s, logprobs=s.logprobs * math.nan), "of the trainer's logprobs are NaN"),
        (lambda s: replace(s, version="run/1/0/aa"), "sampled under run/1/1/aa and scored with run/1/0/aa"),
        (lambda s: replace(s, experts=s.experts + 1), "flip_margin_max 0.1 is over 1e-05"),
    ],
)
def test_a_fault_in_one_sample_of_one_step_is_found_and_named(change: Callable[[Score], Score], said: str) -> None:
    report = spoilt_in_step_1(change)
    assert not report.agreed
    assert [step.verdict for step in report.steps] == ["agree", "disagree", "agree"]
    assert any(said in breach for breach in report.steps[1].breaches)


def test_media_that_the_trainer_saw_otherwise_are_named() -> None:
    def spoil(step: int, scores: list[Score]) -> list[Score]:
        return [replace(s, digests=({"pixel_values_flat": "e" * 64},)) if s.digests else s for s in scores]

    report = run(SETTINGS, FakePolicies(spoil), Silent())
    assert not report.agreed
    assert any(
        "the trainer got another tensor than the pixel_values_flat" in breach for breach in report.steps[0].breaches
    )


def test_the_report_is_json_without_nan(tmp_path: Path) -> None:
    def spoil(step: int, scores: list[Score]) -> list[Score]:
        return [replace(s, logprobs=s.logprobs * math.nan) for s in scores] if step == 1 else scores

    report = run(SETTINGS, FakePolicies(spoil), Silent())
    path = report.write(tmp_path / "new")

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in the report")

    stored = json.loads(path.read_text(), parse_constant=refuse)
    assert stored["schema"] == 1
    assert stored["steps"][1]["by_modality"]["text"]["logprob_abs_diff_mean"] is None
    assert set(stored["legs"]) == {"train_vs_prefill", "prefill_vs_decode", "batch_vs_alone"}
    assert list(path.parent.iterdir()) == [path]
