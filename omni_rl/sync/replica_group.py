"""Gives several replicas commands at the same time."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any, Literal

from omni_rl.errors import ConfigError, FencedError, OmniRLError
from omni_rl.sync.replica import Command, Deadline, Replica, ReplicaStatus
from omni_rl.sync.states import Observer, Phase, SyncEvent


@dataclass(frozen=True)
class Deadlines:
    """Deadlines in seconds. A replica that misses one is treated as lost: replaced if it can be, and never counted as
    updated.

    `answer` is for commands that only change state, and the status; the replica may be in the middle of a step. `drain`
    is for requests that must be finished first, `write` and `prove` for one copy and two reads of the weights, `score`
    for the canonical probe. `decide` is how long the decision is tried again while the journal cannot be written (a
    full disk, say); all replicas wait meanwhile.
    """

    answer: float = 30.0
    drain: float = 120.0
    write: float = 120.0
    prove: float = 120.0
    score: float = 300.0
    decide: float = 10.0


@dataclass(frozen=True)
class ReplicaAnswers:
    """What each replica answered, or why it did not, by its name."""

    done: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, OmniRLError] = field(default_factory=dict)


class ReplicaGroup:
    """All replicas of a run, by name. Every call goes to its replicas in parallel and waits for all of them.

    `observe` is called with each answer as it comes, in the caller's thread.
    """

    def __init__(self, replicas: Sequence[Replica], deadlines: Deadlines, observe: Observer) -> None:
        self._replicas = {replica.name: replica for replica in replicas}
        if len(self._replicas) != len(replicas) or not replicas:
            raise ConfigError(f"replicas {[replica.name for replica in replicas]}: give one or more, each its own name")
        self.deadlines = deadlines
        self._observe = observe
        self._threads = ThreadPoolExecutor(len(replicas), thread_name_prefix="replica")

    @property
    def names(self) -> list[str]:
        return list(self._replicas)

    def tell(self, phase: Phase, commands: Mapping[str, Command], deadline: Deadline) -> ReplicaAnswers:
        """Give replicas their commands. Raises `FencedError` if one of them has heard a newer coordinator."""
        sync = next(iter(commands.values())).sync if commands else ""
        return self._each(sync, phase, commands, lambda replica: replica.call(commands[replica.name], deadline))

    def order(self, commands: Mapping[str, Command], deadline: Deadline) -> ReplicaAnswers:
        """Give replicas commands that are no part of a sync, as `tell` does, without calling `observe`."""
        return self._each(None, Phase.IDLE, commands, lambda replica: replica.call(commands[replica.name], deadline))

    def statuses(self) -> dict[str, ReplicaStatus]:
        """Return the status of each replica that answers."""
        deadline = Deadline("status", self.deadlines.answer)
        return self._each(None, Phase.IDLE, self.names, lambda replica: replica.status(deadline)).done

    def replace(self, sync: str, names: Iterable[str]) -> ReplicaAnswers:
        """Start new processes for the replicas `names`."""
        return self._each(sync, Phase.QUARANTINE, names, lambda replica: replica.replace())

    def close(self) -> None:
        """End the threads; the replicas themselves are not closed."""
        self._threads.shutdown()

    def _each(
        self, sync: str | None, phase: Phase, names: Iterable[str], call: Callable[[Replica], Any]
    ) -> ReplicaAnswers:
        futures = {self._threads.submit(call, self._replicas[name]): name for name in names}
        answers = ReplicaAnswers()
        fenced: FencedError | None = None
        for future in as_completed(futures):
            name = futures[future]
            try:
                answers.done[name] = future.result()
            except FencedError as error:
                fenced = error
            except OmniRLError as error:
                answers.failed[name] = error
            if sync is not None:
                what: Literal["done", "failed"] = "done" if name in answers.done else "failed"
                self._observe(SyncEvent(sync, phase, what, name, str(answers.failed.get(name, ""))))
        if fenced is not None:
            raise fenced
        return answers
