"""Runs the trainer group in a detached actor, which the bridge and the jobs' drivers use in turns.

The ranks meet in collectives, so the calls of two drivers must reach all ranks in the same order. The actor, a single
process that deals out the work, ensures that. It owns the ranks: when it ends, they end.
"""

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from omni_rl.actors import ReservedBundle
from omni_rl.errors import TrainerDeadError
from omni_rl.rollout.types import Rollout
from omni_rl.train.recent import RecentAnswers
from omni_rl.train.settings import TrainSettings
from omni_rl.train.trainer import Built

if TYPE_CHECKING:
    from omni_rl.train.group import TrainerGroup


@dataclass(frozen=True)
class TrainerStatus:
    """The state of a trainer.

    `version` is the version of the weights after the last call that ended. `busy` is what the ranks are called for,
    `end` the reason why the trainer cannot be used any more, and `stopped` says which ranks are stopped, with their
    processes and machines; each of these is empty where it does not apply.
    """

    version: str
    busy: str = ""
    end: str = ""
    stopped: str = ""


class TrainerActor:
    """The actor that runs in the trainer's process. `start` has to be called first. Calls are worked off one after the
    other in a thread, so that `status` answers meanwhile."""

    def __init__(self) -> None:
        self._group: TrainerGroup | None = None
        self._status = TrainerStatus("")
        self._work = ThreadPoolExecutor(1, "trainer")
        self._recent = RecentAnswers()

    async def process(self) -> tuple[str, int]:
        """Return the address of the actor's node, and its process id."""
        return ray.util.get_node_ip_address(), os.getpid()

    async def alive(self) -> None:
        """Answer a ping whatever the ranks are doing, unless the process is stopped."""

    async def status(self) -> TrainerStatus:
        group = self._group
        if group is None or self._status.end:
            return self._status
        # Ray's wait blocks the thread, if only for a moment, so it must not run in the event loop.
        stopped, dead = await asyncio.to_thread(lambda: (group.stopped(), group.dead()))
        # A call that is under way finds the death itself and ends the other ranks; without a call, only this look does.
        return replace(self._status, stopped=stopped, end=self._status.end or dead)

    async def start(self, model: Path, settings: TrainSettings, run: str, bundles: Sequence[ReservedBundle]) -> Built:
        def start() -> Built:
            from omni_rl.train.group import TrainerGroup  # with torch, which drivers need not load

            self._group = TrainerGroup.start(model, settings, run, bundles=bundles)
            self._status = TrainerStatus(str(self._group.version()))
            return self._group.built

        return await asyncio.get_running_loop().run_in_executor(self._work, start)

    async def built(self) -> Built:
        """Return what `start` returned."""
        return self._running().built

    async def each(self, method: str, shares: Sequence[Sequence[Any]]) -> list[Any]:
        """Call a method of every rank; see `omni_rl.train.trainer.Trainer.each`."""
        answers = await asyncio.get_running_loop().run_in_executor(self._work, self._each, method, shares)
        if method == "score":
            self._recent.put([rollout for packs in shares[0] for pack in packs for rollout in pack])
        return answers

    async def recall(self, names: Sequence[str]) -> list[Rollout]:
        return self._recent.of(names)

    def _running(self) -> "TrainerGroup":
        if self._group is None:
            raise TrainerDeadError("the trainer was not started")
        return self._group

    def _each(self, method: str, shares: Sequence[Sequence[Any]]) -> list[Any]:
        group, before = self._running(), self._status
        self._status = TrainerStatus(before.version, method)
        try:
            answers = group.each(method, *shares)
            self._status = TrainerStatus(str(group.version()))
        except TrainerDeadError as error:
            self._status = TrainerStatus(before.version, end=str(error))
            raise
        except BaseException:
            self._status = before
            raise
        return answers
