"""Runs the jobs' loop on a local pair: both policies see the same prompts, and this process judges every step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

from omni_rl.config import DemoSettings
from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.comparison import Comparison, compare
from omni_rl.consistency.posted.history import History
from omni_rl.consistency.posted.verdict import judge_posted
from omni_rl.consistency.yardstick import Yardstick
from omni_rl.demo.display import Display
from omni_rl.demo.environment import DemoEnvironment
from omni_rl.demo.report import Report, StepReport
from omni_rl.jobs.clock import Clock
from omni_rl.jobs.loop import Loop, LoopSettings
from omni_rl.jobs.reinforce import Reinforce
from omni_rl.jobs.run import Judge, StepAnswers
from omni_rl.policies.types import Placed, Policies
from omni_rl.rollout.settings import Dtype
from omni_rl.rollout.types import Rescore, Rollout
from omni_rl.train import pairing
from omni_rl.train.evidence import posted_step

REPORTED = {"sample": "sample", "score": "score", "legs": "legs", "learn": "learn", "sync": "update"}
"""The phases whose seconds are in the report, and their names there."""


class LocalPolicies(Policies, Protocol):
    """The two policies as the demo needs them; `omni_rl.policies.local.LocalPair` is the real pair."""

    @property
    def engine_version(self) -> str: ...
    @property
    def parameters(self) -> int: ...
    @property
    def weight_version(self) -> str: ...
    @property
    def actors(self) -> Sequence[Placed]:
        """The actors of both policies, and where they are now."""

    def rescore(self, rollouts: Sequence[Rollout], *, alone: bool) -> list[Rescore]: ...
    def sync(self) -> object:
        """Bring the trainer's weights to the engines."""


class LocalRun:
    """A run that this process judges: its verdict is the step's report. `beside`, if given, judges each step too."""

    def __init__(self, dtype: Dtype, pair: LocalPolicies, beside: Judge[object] | None) -> None:
        self._yardstick, self._history = Yardstick.of(dtype, lag=0), History()
        self._pair = pair
        self._beside = beside
        self._judged: StepAnswers

    def judge(self, step: int, answers: StepAnswers, training: Mapping[str, float]) -> tuple[StepReport, None]:
        if self._beside is not None:
            self._beside.judge(step, answers, training)
        columns = StepColumns.of(pairing.train_against_decode(answers.rollouts, answers.scores))
        posted = posted_step(columns, answers.rollouts, answers.scores)
        judged = judge_posted(columns, posted, self._yardstick, self._history)
        self._judged, self._history = answers, judged.history
        return StepReport.of(step, self._pair.weight_version, training["reward"], judged), None

    def learnt(self, step: int, training: Mapping[str, float]) -> None:
        if self._beside is not None:
            self._beside.learnt(step, training)

    def sync(self, step: int) -> str:
        if step >= 0:  # before the first step, both policies have the checkpoint's weights
            self._pair.sync()
        return self._pair.weight_version

    def legs(self) -> dict[str, Comparison]:
        """Compare the answers of the step that was judged last in three legs: trainer against prefill, prefill against
        decode, and batch against alone.

        Both sides use the weights that they hold now, and all logprobs are at temperature 1.
        """
        rollouts, scores = self._judged.rollouts, self._judged.scores
        batch, alone = self._pair.rescore(rollouts, alone=False), self._pair.rescore(rollouts, alone=True)
        sides = {
            "train_vs_prefill": pairing.train_against_prefill(rollouts, scores, batch),
            "prefill_vs_decode": pairing.engine_against_itself(rollouts, rollouts, batch, scores),
            "batch_vs_alone": pairing.engine_against_itself(rollouts, batch, alone, scores),
        }
        return {leg: compare(pairs, self._yardstick.ties) for leg, pairs in sides.items()}


def run(
    settings: DemoSettings,
    pair: LocalPolicies,
    display: Display,
    beside: Judge[object] | None = None,
    check: Callable[[], None] = lambda: None,
) -> Report:
    """Run every step and the legs, and return the report, which says whether the policies agreed. Writes no file.

    `check` is called as each phase of a step begins, and may end the run by raising.
    """

    def on_phase(step: int, phase: str) -> None:
        check()
        display.phase(step, phase)

    report = Report(
        dtype=settings.dtype,
        seed=settings.seed,
        engine={"name": "vllm", "version": pair.engine_version},
        train={"world_size": settings.world_size, "sharding": "fsdp2"},
        parameters=pair.parameters,
    )
    local = LocalRun(settings.dtype, pair, beside)
    # Nothing would be sampled with the last step's update, and the legs need the weights that its answers came from.
    how = LoopSettings(settings.steps, learn_last=False)
    for done in Loop(how, DemoEnvironment(settings), Reinforce(), pair, local, on_phase=on_phase).run():
        clock = Clock(partial(on_phase, done.step))
        if done.step == settings.steps - 1:
            with clock.time("legs"):
                report.legs = local.legs()
        took = {**done.seconds, **clock.seconds}
        seconds = {REPORTED[phase]: seconds for phase, seconds in took.items() if phase in REPORTED}
        report.steps.append(replace(done.verdict, seconds=seconds))
        display.step(report.steps[-1])
    report.actors = list(pair.actors)
    return report
