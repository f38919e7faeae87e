"""A policy over ten digits at the seams where the pair and the service stand: it learns what it is told, by plain
gradient steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from omni_rl.api.runs import DriftAnswer
from omni_rl.api.steps import Verdict
from omni_rl.jobs.run import StepAnswers, Weights
from omni_rl.media.types import Prompt, RenderedPrompt
from omni_rl.rollout.types import Rollout, SamplingSettings, VersionSpan
from omni_rl.train.settings import Objective
from omni_rl.train.targets import Targets
from omni_rl.train.types import Score, StepStats

DIGITS = 10
END = DIGITS
"""The token that ends an answer."""
STEEP = 20.0
"""Times the learning rate: a table takes larger steps than a network."""


@dataclass
class Tabular:
    """Logits [question, digit], a value a question; an answer is a digit and the end, which is always chosen."""

    questions: int
    weights: Weights | None = None
    events: list[str] = field(default_factory=list)
    posted: list[StepAnswers] = field(default_factory=list)
    training: list[dict[str, float]] = field(default_factory=list)
    taught: list[list[Targets]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    sampled: list[list[Rollout]] = field(default_factory=list)
    snapshots: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    saved: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    version: str = ""

    def __post_init__(self) -> None:
        self.logits = np.zeros((self.questions, DIGITS))
        self.values = np.zeros(self.questions)
        self._served = self.logits.copy(), self.version

    def render(self, prompts: Sequence[Prompt]) -> list[RenderedPrompt]:
        return [
            RenderedPrompt(id=prompt.id, kind="text", ids=np.array([int(prompt.text)]), answer=prompt.answer)
            for prompt in prompts
        ]

    def sample(self, prompts: Sequence[RenderedPrompt], sampling: SamplingSettings) -> list[Rollout]:
        self.events.append("sample")
        table, version = self._served  # another thread may sync meanwhile
        found = []
        for number, prompt in enumerate(prompts):
            logprobs = _log_softmax(table[int(prompt.ids[0])])
            digit = int(np.random.default_rng(sampling.seed + number).choice(DIGITS, p=np.exp(logprobs)))
            ids = np.array([digit, END])[: sampling.max_tokens]
            found.append(
                Rollout(
                    prompt=prompt,
                    ids=ids,
                    logprobs=np.array([logprobs[digit], 0.0])[: len(ids)],
                    temperature=sampling.temperature,
                    version_spans=(VersionSpan(version, 0, len(ids)),),
                    engine_digests=(),
                    experts=None,
                    finish_reason="stop" if len(ids) == 2 else "length",
                )
            )
        self.sampled.append(found)
        return found

    def score(self, rollouts: Sequence[Rollout], snapshot: str | None = None, *, replay: bool = False) -> list[Score]:
        self.events.append("score")
        table = self.logits if snapshot is None else self.snapshots[snapshot]
        found = []
        for rollout in rollouts:
            question = int(rollout.prompt.ids[0])
            logprobs = np.array([_log_softmax(table[question])[int(rollout.ids[0])], 0.0])[: len(rollout.ids)]
            values = np.full(len(rollout.ids), self.values[question])
            found.append(Score(logprobs, None, None, (), snapshot or self.version, values=values))
        return found

    def update(
        self, rollouts: Sequence[Rollout], targets: Sequence[float | Targets], objective: Objective
    ) -> StepStats:
        self.events.append("update")
        taught = [target for target in targets if isinstance(target, Targets)]
        self.taught.append(taught)
        assert objective.learning_rate is not None
        self.rates.append(objective.learning_rate)
        for rollout, target in zip(rollouts, taught, strict=True):
            question, digit = int(rollout.prompt.ids[0]), int(rollout.ids[0])
            direction = -np.exp(_log_softmax(self.logits[question]))
            direction[digit] += 1
            scale = STEEP * objective.learning_rate * target.shares[0] * target.weights[0]
            self.logits[question] += scale * target.advantages[0] * direction
            if target.returns is not None:
                self.values[question] += scale * (target.returns[0] - self.values[question])
        return StepStats(loss=0.0, grad_norm=1.0, tokens=sum(int((target.shares > 0).sum()) for target in taught))

    def decode(self, ids: NDArray[np.int64]) -> str:
        return "".join(str(number) for number in ids if number != END)

    def judge(self, step: int, answers: StepAnswers, training: Mapping[str, float]) -> tuple[Verdict, Weights | None]:
        self.events.append("judge")
        self.posted.append(answers)
        self.training.append(dict(training))
        verdict = Verdict(
            run="run",
            attempt=1,
            step=step,
            severity="ok",
            reason="every figure is within its limits",
            breaches=[],
            drift=DriftAnswer(),
            samples=len(answers.rollouts),
            tokens=sum(len(rollout.ids) for rollout in answers.rollouts),
            figures={},
            worst=[],
        )
        return verdict, self.weights

    def learnt(self, step: int, training: Mapping[str, float]) -> None:
        self.training[-1] |= training

    def take_snapshot(self, name: str) -> None:
        self.snapshots[name] = self.logits.copy()

    def drop_snapshot(self, name: str) -> None:
        self.snapshots.pop(name, None)

    def sync(self, step: int) -> str:
        self.events.append("sync")
        self.version = f"run/1/{step + 1}/abc"
        self._served = self.logits.copy(), self.version
        return self.version

    def save(self, following: int) -> None:
        self.saved[following] = self.logits.copy()


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max()
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result


@dataclass(frozen=True)
class Questions:
    """`count` questions, whose answers are their numbers."""

    count: int

    def __len__(self) -> int:
        return self.count

    def prompt(self, index: int) -> Prompt:
        return Prompt(id=f"question-{index}", text=str(index), answer=str(index))
