"""The limits and ties by which every comparison is judged, whoever asks: the demo, the service, a check, a replay."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.comparison import StepComparison, compare_step
from omni_rl.consistency.left_out import TIES, LeaveOut, Ties
from omni_rl.consistency.limits import Judgement, Limits, judge, limits_for


@dataclass(frozen=True)
class Yardstick:
    """The `limits` of the figures, and which tokens `ties` leave out of them."""

    limits: Limits
    ties: Ties

    @classmethod
    def of(
        cls,
        dtype: str,
        changes: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
        leave_out: LeaveOut | None = None,
    ) -> "Yardstick":
        """Return the yardstick of a dtype, with a run's own limits (see `limits_for`) and rule of what is left out in
        its place.

        Raises:
            ConfigError: The dtype is unknown, or limits do not rise.
        """
        limits, ties = limits_for(dtype, changes), TIES[dtype]
        return cls(limits, ties if leave_out is None else replace(ties, leave_out=leave_out))

    def compare(self, columns: StepColumns) -> StepComparison:
        """Return the figures of a step."""
        return compare_step(columns, self.ties)

    def judge(self, comparison: StepComparison) -> Judgement:
        """Return what the figures amount to."""
        return judge(comparison.figures, self.limits)
