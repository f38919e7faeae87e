"""What a run's line on the first screen says beside its drift. It is carried from step to step, so that no step is read
for it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from omni_rl.consistency.incidents import Figure, GoodStep, figure_of
from omni_rl.consistency.limits import Severity
from omni_rl.consistency.policy import Drift
from omni_rl.consistency.shown import number_or_none
from omni_rl.kinds import OVERALL
from omni_rl.ledger.types import StepKey
from omni_rl_services.coordinator.judging import Judged

RECENT = 32
"""The number of steps that a line draws."""
REWARD = "reward"
"""The name of the trainer's figure that a line draws."""


@dataclass(frozen=True)
class Line:
    """A run's line. `attempt`, `step`, `sealed` and `own` severity are of the latest step; `figure` is the worst of
    those by which the run drifts; `good` is its last step that was ok; `recent` has number, reward and mean abs d of
    the newest steps."""

    attempt: int | None = None
    step: int | None = None
    sealed: float | None = None
    own: Severity | None = None
    figure: Figure | None = None
    good: GoodStep | None = None
    recent: tuple[tuple[int, float | None, float | None], ...] = ()

    def after(
        self, key: StepKey, judged: Judged, drift: Drift, training: Mapping[str, float | None], sealed: float
    ) -> "Line":
        """Return the line after one more step, after which the run stands at `drift`."""
        own = judged.judgement.severity
        figure = figure_of(judged.judgement) or self.figure
        mean = judged.comparison.figures[OVERALL]["logprob_abs_diff_mean"]
        recent = (*self.recent, (key.step, number_or_none(training.get(REWARD)), number_or_none(mean)))[-RECENT:]
        good = GoodStep(key.attempt, key.step, ", ".join(judged.versions)) if own is Severity.OK else self.good
        calm = drift.severity is Severity.OK and drift.gate == "open"
        return Line(key.attempt, key.step, sealed, own, None if calm else figure, good, recent)

    def rewarded(self, key: StepKey, training: Mapping[str, float | None]) -> "Line":
        """Return the line with the reward of a step that is told after its seal, or this line if it draws no such
        step."""
        drawn = [number for number, (step, _, _) in enumerate(self.recent) if step == key.step]
        if REWARD not in training or key.attempt != self.attempt or not drawn:
            return self
        recent = list(self.recent)
        latest = drawn[-1]  # the others are of earlier attempts
        recent[latest] = (key.step, number_or_none(training[REWARD]), recent[latest][2])
        return replace(self, recent=tuple(recent))
