"""Holds a trainer for a driver: starts it or finds it, calls it, and tells its death from a stop."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from omni_rl.actors import ReservedBundle, kill, place, share
from omni_rl.agent.settings import for_actor
from omni_rl.errors import (
    ReplicaDeadError,
    ReplicaSilentError,
    ReplicaStoppedError,
    TrainerDeadError,
    TrainerStoppedError,
)
from omni_rl.processes import PLACEMENT_TIMEOUT, wait_until_gone
from omni_rl.rollout.types import Rollout
from omni_rl.sync.replica import Deadline
from omni_rl.sync.waiting import FOUND, HEARTBEAT, Waiter
from omni_rl.train.actor import TrainerActor, TrainerStatus
from omni_rl.train.ranks import STOPPED_LONGEST
from omni_rl.train.settings import TrainSettings
from omni_rl.train.trainer import Trainer

T = TypeVar("T")
ENDING = "a trainer that ends loses what it has learnt"
WAKE_RANK = f"wake it up (kill -CONT), and ask again; or end it: {ENDING}"
"""The advice of an error about a stopped rank."""
CPUS = 0.01
"""The CPUs that Ray sets aside for the actor. It only waits for the ranks, which have CPUs of their own."""


class TrainerHandle(Trainer):
    """A driver's handle on a trainer whose ranks a `TrainerActor` holds. Start a trainer with `start`, or get a handle
    on a running one with `attach`.

    Any number of drivers may have a handle on the same trainer. `close` ends the trainer for all of them.

    While a rank or the trainer's own process is stopped, the calls of a handle that `waits` go on waiting,
    `STOPPED_LONGEST` seconds at most. Those of any other handle raise `TrainerStoppedError`; what they asked for may
    still be done once the process goes on. `process` names the trainer's own process: no other trainer has had it.
    """

    def __init__(self, actor: Any, name: str, pid: int | None, waits: bool = True) -> None:
        self.name = name
        self.waits = waits
        self.process = ""
        self._actor = actor
        self._pid = pid

    @classmethod
    def start(
        cls,
        model: Path,
        settings: TrainSettings,
        *,
        run: str,
        name: str,
        namespace: str,
        bundles: Sequence[ReservedBundle] = (),
        waits: bool = True,
    ) -> "TrainerHandle":
        """Start the actor and its ranks with the checkpoint's weights, each rank in its bundle if `bundles` has any.

        Raises what `TrainerGroup.start` raises, and `TrainerDeadError` if another trainer has the name.
        """
        # The actor may be only on a node that its ranks may be on too; the devices are for the ranks.
        beside = {name: amount for name, amount in settings.resources.items() if name != "GPU"}
        options = {"name": name, "namespace": namespace, "lifetime": "detached", "max_restarts": 0}
        try:
            actor = place(ray.remote(TrainerActor).options(**options, **share(CPUS, beside, agent=for_actor(run))))
        except ValueError as error:
            raise TrainerDeadError(f"{name}: another trainer has that name: {error}") from error
        handle = cls(actor, name, None, waits)
        try:
            handle._locate(PLACEMENT_TIMEOUT)
            handle.built = handle._call("start", model.resolve(), settings, run, bundles)
        except BaseException:
            handle.close()
            raise
        return handle

    @classmethod
    def attach(cls, name: str, namespace: str, *, waits: bool = True) -> "TrainerHandle | None":
        """Return a handle on the trainer that was started under that name, or None if there is none that can be used.

        Raises `TrainerDeadError` if the trainer's process does not answer.
        """
        try:
            handle = cls(ray.get_actor(name, namespace), name, None, waits)
        except ValueError:
            return None
        handle._locate(FOUND)
        status = handle.status(FOUND)
        if not status.version or status.end:
            return None
        handle.built = handle._get(handle._actor.built.remote(), "built", FOUND)
        return handle

    def each(self, method: str, *shares: Sequence[Any]) -> list[Any]:
        answers: list[Any] = self._call("each", method, shares, what=method)
        return answers

    def status(self, seconds: float = HEARTBEAT) -> TrainerStatus:
        """Return the trainer's status, which the actor answers at once, whatever the ranks are doing. `seconds` is the
        deadline of that answer.

        Raises `TrainerStoppedError` if the trainer's own process is stopped, `TrainerDeadError` if it does not answer.
        """
        status: TrainerStatus = self._waited(
            lambda waiter: waiter.get(self._actor.status.remote(), "status", Deadline("status", seconds))
        )
        return status

    def recall(self, names: Sequence[str]) -> list[Rollout]:
        """Return the answers last scored to the prompts of these names, as far as the trainer still holds them."""
        answers: list[Rollout] = self._call("recall", names)
        return answers

    def close(self) -> None:
        """End the trainer's processes. The call is idempotent."""
        kill(self._actor)
        wait_until_gone([] if self._pid is None else [self._pid])

    def _locate(self, timeout: float) -> None:
        address, pid = self._get(self._actor.process.remote(), "process", timeout)
        self.process = f"process {pid} on {address}"
        self._pid = pid if address == ray.util.get_node_ip_address() else None

    def _get(self, reference: Any, what: str, timeout: float = HEARTBEAT) -> Any:
        try:
            return ray.get(reference, timeout=timeout)
        except GetTimeoutError:
            raise TrainerDeadError(f"{self.name}: no answer to {what} within {timeout:g} s") from None
        except RayActorError as error:
            raise TrainerDeadError(f"{self.name}: its process ended; start another") from error
        except RayError as error:
            raise TrainerDeadError(f"{self.name}: Ray lost the answer to {what}: {error}") from error

    def _call(self, method: str, *arguments: Any, what: str | None = None) -> Any:
        """Make a call that may take long, named `what` in errors, and return its answer. There is no deadline, but a
        dead or stopped process is noticed."""
        answer = getattr(self._actor, method).remote(*arguments)
        first: float | None = None

        def heard(status: TrainerStatus) -> None:
            nonlocal first
            first = None  # the process runs again, so that its next stop counts from its own beginning
            if status.stopped and not self.waits:
                raise TrainerStoppedError(f"{self.name}: {status.stopped}; {WAKE_RANK}")

        while True:
            try:
                return self._waited(lambda waiter: waiter.get(answer, what or method, None), heard)
            except TrainerStoppedError:
                first = first or time.monotonic()
                if not self.waits or time.monotonic() - first >= STOPPED_LONGEST:
                    raise

    def _waited(self, wait: Callable[[Waiter], T], heard: Callable[[TrainerStatus], None] | None = None) -> T:
        waiter = Waiter(self._actor, self.name, self._pid, lambda: self._actor.status.remote(), heard, ENDING)
        try:
            return wait(waiter)
        except ReplicaStoppedError as error:
            raise TrainerStoppedError(str(error)) from error
        except (ReplicaDeadError, ReplicaSilentError) as error:
            raise TrainerDeadError(str(error)) from error
