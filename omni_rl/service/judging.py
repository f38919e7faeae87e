"""Judges dumped steps in this process as a coordinator judges those that are posted."""

from collections.abc import Iterable, Iterator, Sequence

from omni_rl_services.coordinator.judging import judge_step
from omni_rl_services.coordinator.runs import LiveRun
from omni_rl_services.coordinator.settings import CoordinatorSettings
from omni_rl_services.coordinator.verdicts import verdict_of

from omni_rl.api.runs import RunBody
from omni_rl.api.steps import Verdict
from omni_rl.consistency.dtypes import Dtype
from omni_rl.kinds import KINDS
from omni_rl.ledger.types import StepKey
from omni_rl.settings import validated
from omni_rl.watch.readers.dumps import DumpedStep

ATTEMPT = 1


def body_of(
    steps: Iterable[DumpedStep], *, dtype: Dtype = "bfloat16", train_dtype: Dtype | None = None, lag: int | None = None
) -> RunBody:
    """Return the run that the steps are judged as, with the kinds of prompt that their records name.

    Raises:
        ConfigError: a kind has a name that no run can have.
    """
    kinds = {kind for step in steps for part in step.parts.values() for kind in part.kinds}
    return validated(
        RunBody,
        {
            "run": "judged",
            "model": "model",
            "dtype": dtype,
            "train_dtype": train_dtype,
            "lag": lag,
            "kinds": sorted(kinds - {*KINDS}),
        },
    )


def judge_steps(steps: Sequence[DumpedStep], body: RunBody) -> Iterator[Verdict]:
    """Yield a verdict for each step, in order, with what the steps before it show. It is the verdict with which a
    coordinator would have answered the seal of the step."""
    settings = CoordinatorSettings()
    run = LiveRun.of(body, 0.0, settings.settle)
    for step in steps:
        key = StepKey(body.run, ATTEMPT, step.step)
        judged = judge_step(step.parts, run.yardstick, run.history_of(ATTEMPT), settings.worst_samples)
        outcome = run.policy.judged(run.drift, judged.judgement)
        yield verdict_of(key, judged, outcome.drift, None, run.policy.settle, live=True)
        run.drift, run.history, run.latest = outcome.drift, judged.history, (ATTEMPT, step.step)
