"""Calls all rank processes of a trainer at once, and diagnoses which one is to blame when a call fails."""

import time
from collections.abc import Sequence
from typing import Any, NoReturn

import ray
from ray.exceptions import RayError, RayTaskError

from omni_rl.actors import kill
from omni_rl.errors import (
    CheckpointError,
    ConfigError,
    GradientError,
    OmniRLError,
    SlabError,
    SourceError,
    TrainerDeadError,
)
from omni_rl.processes import wait_until_gone
from omni_rl.train.pulse import Pulse

DIAGNOSIS_TIME = 3.0
"""The seconds to wait for the others after a rank failed: the first to fail is often the victim of one that died."""
LOOK_EVERY = 0.5
"""The seconds between two looks at the processes while their answers are awaited."""
STOPPED_LONGEST = 300.0
"""The seconds for which a rank may be stopped during a call: whoever stopped it may wake it up again."""
HARMLESS = (CheckpointError, ConfigError, GradientError, SlabError, SourceError)
"""The errors that are raised outside every collective, or by all ranks together: if all ranks have answered, they are
still in step."""


class Ranks:
    """The Ray actors of the ranks, which answer the same calls together. `pulse` tells which of them are stopped.

    A call waits for a rank that is stopped, `stopped_longest` seconds at most.
    """

    def __init__(self, actors: Sequence[Any], stopped_longest: float = STOPPED_LONGEST) -> None:
        self._actors = list(actors)
        self._stopped_longest = stopped_longest
        self.pulse = Pulse()
        self.pids: list[int] = []  # the process ids of the ranks on this node
        self._end: str | None = None

    def __len__(self) -> int:
        return len(self._actors)

    def locate(self, timeout: float) -> list[str]:
        """Wait until every rank runs, and return the addresses of their nodes by rank.

        Raises:
            TrainerDeadError: a rank was not started within `timeout` seconds.
        """
        places = self.collect([actor.locate.remote() for actor in self._actors], timeout)
        here = ray.util.get_node_ip_address()
        self.pids = [pid for address, pid in places if address == here]
        self.pulse.follow(self._actors, places)
        return [address for address, _ in places]

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Call every rank with the same arguments, and return the answers by rank."""
        return self.collect(self.submit(method, [arguments] * len(self)))

    def each(self, method: str, *shares: Sequence[Any]) -> list[Any]:
        """Call every rank with its own element of every share, without arguments if there are no shares, and return the
        answers by rank."""
        return self.collect(self.submit(method, list(zip(*shares, strict=True)) if shares else [()] * len(self)))

    def first(self, method: str, *arguments: Any) -> Any:
        """Call rank 0 alone, and return its answer."""
        return self.collect(self.submit(method, [arguments]))[0]

    def submit(self, method: str, arguments: Sequence[Sequence[Any]]) -> list[Any]:
        """Start a call with each element of `arguments`, on the ranks from 0 on, and return references to the answers.

        Raises `TrainerDeadError` if the group has ended.
        """
        if self._end is not None:
            raise TrainerDeadError(f"the trainer group cannot be used: {self._end}; start a new one")
        return [getattr(actor, method).remote(*its) for actor, its in zip(self._actors, arguments, strict=False)]

    def collect(self, references: Sequence[Any], timeout: float | None = None) -> list[Any]:
        """Wait for the referenced answers, and return them.

        Raises:
            TrainerDeadError: a rank died, failed, did not answer within `timeout` or was stopped for too long; the
                others are ended too.
            one of HARMLESS: a rank raised it while all ranks stayed in step; the group lives on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pending = list(references)
        answers: dict[Any, Any] = {}
        while pending:
            left = LOOK_EVERY if deadline is None else max(0.0, deadline - time.monotonic())
            ready, pending = ray.wait(pending, num_returns=1, timeout=min(left, LOOK_EVERY))
            if not ready:
                stopped = self.pulse.look()
                if stopped and self.pulse.seconds >= self._stopped_longest:
                    self._fail(f"{stopped}, and has been for {self.pulse.seconds:.0f} s")
                if deadline is None or time.monotonic() < deadline:
                    continue
                self._fail(
                    f"{len(pending)} of {len(self)} ranks were not started within {timeout:g} s; "
                    "the cluster lacks CPUs for them, or its machines are too busy: lower cpus_per_rank or world_size"
                )
            try:
                answers[ready[0]] = ray.get(ready[0])
            except RayError:
                self._diagnose(references)
        return [answers[reference] for reference in references]

    def close(self) -> None:
        """End every rank's process, and wait until those on this machine are gone. The call is idempotent."""
        self._end = self._end or "it was closed"
        for actor in self._actors:
            kill(actor)
        wait_until_gone(self.pids)

    def _diagnose(self, references: Sequence[Any]) -> NoReturn:
        done, pending = ray.wait(list(references), num_returns=len(references), timeout=DIAGNOSIS_TIME)
        failures = {rank: _failure(r) for rank, r in enumerate(references) if r in done}
        errors = {rank: error for rank, error in failures.items() if error is not None}
        causes = {rank: e.cause if isinstance(e, RayTaskError) else e for rank, e in errors.items()}
        first = next(iter(causes.values()))
        if not pending and isinstance(first, HARMLESS) and all(isinstance(c, HARMLESS) for c in causes.values()):
            raise first
        # A rank whose process died is the cause; that its peers lost their connection is the effect.
        dead = [rank for rank, error in errors.items() if not isinstance(error, RayTaskError)]
        if dead:
            self._fail(died(dead))
        rank, cause = min(causes.items(), key=lambda item: not isinstance(item[1], OmniRLError))
        self._fail(f"rank {rank} failed with {type(cause).__name__}: {cause}", cause)

    def _fail(self, reason: str, cause: BaseException | None = None) -> NoReturn:
        self._end = reason
        self.close()
        raise TrainerDeadError(f"trainer: {reason}; every rank was ended, start a new group") from cause


def died(ranks: Sequence[int]) -> str:
    """Return the reason why a group ends when these ranks have died."""
    return f"the process of rank {', '.join(map(str, ranks))} died"


def _failure(reference: Any) -> RayError | None:
    try:
        ray.get(reference)
    except RayError as error:
        return error
    return None
