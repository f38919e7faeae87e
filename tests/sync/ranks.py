"""Two ranks of a training copy as threads of one process: each has its own view of the group that they are."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from omni_rl.sync import group
from omni_rl.sync.group import Group

T = TypeVar("T")
RANKS = 2


class Ranks:
    """What `torch.distributed` is to them. `lost`: the other side of a collective is gone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._mine = threading.local()
        self._met = threading.Barrier(RANKS, timeout=10)
        self._given: list[Any] = [None] * RANKS
        self.lost = False
        monkeypatch.setattr(group, "dist", self)

    def get_rank(self) -> int:
        rank: int = self._mine.rank
        return rank

    def get_world_size(self) -> int:
        return RANKS

    def all_gather_object(self, answers: list[Any], own: Any) -> None:
        if self.lost:
            raise RuntimeError("Connection closed by peer")
        self._given[self.get_rank()] = own
        self._met.wait()
        answers[:] = self._given
        self._met.wait()

    def each(self, act: Callable[[Group], T]) -> list[T | Exception]:
        """What `act` returns, or raises, in each rank."""

        def begin(rank: int) -> T | Exception:
            self._mine.rank = rank
            try:
                return act(Group.default())
            except Exception as error:
                return error

        with ThreadPoolExecutor(RANKS) as threads:
            return list(threads.map(begin, range(RANKS)))


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Ranks:
    return Ranks(monkeypatch)
