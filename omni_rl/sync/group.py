"""Describes the processes that write one slab together, or a single one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

from omni_rl.errors import OmniRLError, SourceError, TrainerDeadError

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """This process's view of its group: its `rank` of `size`. A group of several is torch's default process group."""

    rank: int
    size: int

    @classmethod
    def default(cls) -> "Group":
        """Return the default process group; raises `RuntimeError` (torch's) if there is none."""
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        return self.rank == 0

    def together(self, act: Callable[[], T]) -> list[T]:
        """Have every process call its `act`, and return their results by rank. An error in one is raised in all of
        them.

        Raises:
            OmniRLError: the error of the lowest rank that raised one; any other becomes a `SourceError`.
            TrainerDeadError: a rank died, or did not answer within the group's timeout.
        """
        if self.size == 1:
            return [act()]
        result: Any = None
        error: OmniRLError | None = None
        try:
            result = act()
        except OmniRLError as raised:
            error = raised
        except Exception as raised:  # the others wait: they must hear of it, whatever it is
            error = SourceError(f"rank {self.rank} failed to send its weights: {type(raised).__name__}: {raised}")
        answers: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(answers, (result, error))
        except RuntimeError as broken:  # what torch's backends raise
            raise TrainerDeadError(
                f"a rank that writes weights with this one died or fell silent: {broken}"
            ) from broken
        for _, failure in answers:
            if failure is not None:
                raise failure
        return [answer for answer, _ in answers]


ALONE = Group(0, 1)
