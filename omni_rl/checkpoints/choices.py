"""Makes seeded choices that are the same on every machine and in every Python."""

import random
from collections.abc import Sequence
from typing import TypeVar

Option = TypeVar("Option")


class StableDraws:
    """Draws from `random.Random.random`, the only method of `Random` that is promised to be stable."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self._random.random()

    def below(self, count: int) -> int:
        return int(self._random.random() * count)

    def pick(self, options: Sequence[Option]) -> Option:
        return options[self.below(len(options))]
