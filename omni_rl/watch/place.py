"""Where this process stands in its run: which rank of how many, and in which attempt."""

import os
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

from omni_rl.client import Client
from omni_rl.errors import ConfigError
from omni_rl.run_names import fitting_run_name


@dataclass(frozen=True)
class PostingRank:
    """This process's rank, from 0, among all that post parts of the same steps."""

    rank: int
    world: int

    @classmethod
    def found(cls) -> "PostingRank":
        """Return the rank that the process group says; else the launcher's, by RANK and WORLD_SIZE; else that of a
        single process.

        Raises:
            ConfigError: RANK and WORLD_SIZE are no rank of a world.
        """
        if (group := _process_group()) is not None:
            return cls(group.get_rank(), group.get_world_size())
        rank, world = (os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
        if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
            raise ConfigError(f"RANK={rank} and WORLD_SIZE={world} name no process of a run")
        return cls(int(rank), int(world))


class AttemptNumber:
    """The number of the attempt that this process's steps belong to: the same on every rank, another at every start.

    The first rank takes the number after the run's latest, once a part of its own is stored under it, and leaves the
    number in the process group's store for the other ranks, which look there without waiting. This is no collective
    operation: ranks that never post, or that post late, hold up no other. OMNI_RL_ATTEMPT sets the number where there
    is no process group.
    """

    _started: ClassVar[dict[str, int]] = {}
    """How many attempts of each run this process has begun: a notebook may train twice."""

    def __init__(self, run: str, place: PostingRank, number: int | None = None) -> None:
        self._run = run
        self._place = place
        count = self._started[run] = self._started.get(run, 0) + 1
        self._key = f"omni_rl/attempt/{run}/{count}"
        said = os.environ.get("OMNI_RL_ATTEMPT")
        if number is None and said is not None:
            if not said.isdecimal():
                raise ConfigError(f"OMNI_RL_ATTEMPT={said} is no number")
            number = int(said)
        self._number = number
        self.settled = number is not None
        """Whether the number is known to every rank, and stays."""

    def number(self, client: Client) -> int | None:
        """Return the number; None where the first rank has not yet said it.

        Raises:
            ConfigError: This is not the first rank, and there is no way to learn the number.
        """
        if self._number is None and self._place.rank == 0:
            self._number = (client.run(self._run).attempt or 0) + 1
        if self._number is None and (told := self._told()) is not None:
            self._number, self.settled = told, True
        return self._number

    def taken(self) -> None:
        """Take the next number, because another process has stored parts under this one. Only before the number is
        settled."""
        assert self._number is not None
        assert not self.settled
        self._number += 1

    def settle(self) -> None:
        """Fix the number, and tell it to the other ranks."""
        if not self.settled:
            self.settled = True
            if self._place.world > 1 and (store := _store()) is not None:
                store.set(self._key, str(self._number))

    def _told(self) -> int | None:
        store = _store()
        if store is None:
            raise ConfigError(
                f"rank {self._place.rank} of {self._place.world} has no process group to learn the attempt's number "
                "from; set OMNI_RL_ATTEMPT to one number on all ranks, another at every start"
            )
        return int(store.get(self._key)) if store.check([self._key]) else None


def run_name(name: str | None, otherwise: str | None = None) -> str:
    """Return the run's name: as given, or else OMNI_RL_RUN, or else what the framework calls it, made to fit."""
    return fitting_run_name(name or os.environ.get("OMNI_RL_RUN") or otherwise or "run")


def _process_group() -> Any:
    """Return torch.distributed, where it is in use; None elsewhere."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    return torch.distributed


def _store() -> Any:
    """Return the default process group's key-value store; torch has no public name for it."""
    group = _process_group()
    return None if group is None else group.distributed_c10d._get_default_store()
