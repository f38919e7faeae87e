"""Which of a TRL run's steps go wrong in which way; the run and its test both count so."""

from collections.abc import Mapping, Sequence

from tests.agent.faults import Fault


def steps(faults: Mapping[str, Fault]) -> int:
    """How many steps a run with these faults has: a clean one before each."""
    return 2 * len(faults)


def fault_at(step: int, faults: Sequence[Fault]) -> Fault | None:
    """The fault of a step, which the trainer counts from 0."""
    return faults[step // 2] if step % 2 else None
