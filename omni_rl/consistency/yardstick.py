"""Defines what every comparison is judged by, whoever asks: the demo, the service, a check, a replay."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.comparison import StepComparison, compare_step
from omni_rl.consistency.left_out import TIES, LeaveOut, Ties
from omni_rl.consistency.limits import Judgement, Limits, Severity, judge, limits_for
from omni_rl.kinds import OVERALL

NOISE: Mapping[str, float] = {"float32": 1e-5, "float16": 1.25e-2, "bfloat16": 0.05, "fp8": 0.1}
"""The mean abs d of two correct computations, at most, by dtype."""
ROUNDING: Mapping[str, float] = {"float32": 3e-6, "float16": 1e-3, "bfloat16": 2e-3, "fp8": 4e-3}
"""What rounding may leave in the mean of exp(d), by dtype: both sides are proper policies up to the last bits of their
log-softmax."""


@dataclass(frozen=True)
class Yardstick:
    """The `limits` of the figures, which tokens `ties` leave out of them, and how a run's records are to be read.

    `noise` is the mean abs d of two correct computations in the run's dtypes. `bias` is what rounding may leave in the
    mean of exp(d). `lag` is how many weight versions the engine may be behind; None: not said.
    """

    limits: Limits
    ties: Ties
    noise: float
    bias: float
    lag: int | None = None

    @classmethod
    def of(
        cls,
        dtype: str,
        changes: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
        leave_out: LeaveOut | None = None,
        lag: int | None = None,
    ) -> "Yardstick":
        """Return the yardstick of a dtype, with a run's own limits (see `limits_for`) and rule of what is left out in
        its place, and the run's `lag`.

        Raises:
            ConfigError: The dtype is unknown, or limits do not rise.
        """
        limits, ties = limits_for(dtype, changes), TIES[dtype]
        ties = ties if leave_out is None else replace(ties, leave_out=leave_out)
        return cls(limits, ties, NOISE[dtype], ROUNDING[dtype], lag)

    def compare(self, columns: StepColumns) -> StepComparison:
        """Return the figures of a step."""
        return compare_step(columns, self.ties)

    def judge(self, comparison: StepComparison) -> Judgement:
        """Return what the figures amount to."""
        return judge(comparison.figures, self.limits)

    def far(self, kinds: Iterable[str]) -> float:
        """Return the mean abs d above which a position's tokens are reported, in a step with answers of these kinds:
        the widest limit from which those of a whole kind are masked, as some positions are less sure than others."""
        return self._widest(kinds, Severity.MASK)

    def far_answer(self, kinds: Iterable[str]) -> float:
        """Return the mean abs d above which an answer is reported by itself, in a step with answers of these kinds:
        what stops a run where all answers show it."""
        return self._widest(kinds, Severity.PAUSE)

    def _widest(self, kinds: Iterable[str], severity: Severity) -> float:
        of_kinds = (self.limits.get(kind, self.limits[OVERALL]) for kind in {OVERALL, *kinds})
        return max(limits["logprob_abs_diff_mean"].above(severity) for limits in of_kinds)
