"""Compares the cost model's predictions with measurements that did not go into its constants."""

from dataclasses import dataclass

from omni_rl.plan.measured import MeasuredConstants

TOLERANCE = 0.2


@dataclass(frozen=True)
class TimedCase:
    """A measured time and the model's prediction of it, in seconds."""

    name: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """The error of the prediction, as a share of what was measured."""
        return self.predicted / self.measured - 1


def cases(constants: MeasuredConstants) -> list[TimedCase]:
    """Return the cases. The constants are the phases' medians, and a core's rate at the ingest. Measured beside them,
    and compared here, were how long engines stood still, how long whole syncs took, and how long the least disturbed
    step took on the wall clock."""
    found = []
    for case in constants.sync.values():
        size, megabytes = case["bytes"], round(case["bytes"] / 1e6)
        found.append(TimedCase(f"stall of a sync of {megabytes} MB", case["stall"]["p50"], stall(constants, size)))
        whole = constants.phases["prepare"].seconds(size) + stall(constants, size)
        found.append(TimedCase(f"a whole sync of {megabytes} MB", case["whole_sync"]["p50"], whole))
    tokens = constants.ingest["tokens_per_step"]
    seconds = constants.ingest["seconds"]
    found.append(TimedCase(f"ingest to verdict, {tokens:,} tokens", seconds["step_min"], tokens / constants.check_rate))
    return found


def stall(constants: MeasuredConstants, size: float) -> float:
    """Return the seconds without an engine step in a sync of `size` bytes, on the machine of the measurement."""
    growing = sum(constants.phases[name].seconds(size) for name in ("apply", "verify"))
    return growing + constants.still
