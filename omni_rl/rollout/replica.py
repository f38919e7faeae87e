"""A rollout engine as a replica of weight syncs."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ray.exceptions import RayError

from omni_rl.errors import ReplicaDeadError
from omni_rl.rollout.actor import RolloutHandle
from omni_rl.sync.replica import Apply, Command, Deadline, HoldGate, Release, ReplicaStatus, Verify


class RolloutReplica:
    """`omni_rl.sync.replica.Replica` over a handle; the handle stays its owner's to close.

    `held`: what holds it, which also holds the successor of a dead one. `settle` is told of each successor, which may
    be on another host, before it gets weights.
    """

    def __init__(
        self,
        handle: RolloutHandle,
        held: str | None = None,
        settle: Callable[[RolloutHandle], None] = lambda handle: None,
    ) -> None:
        self.handle = handle
        self.held = held
        self._settle = settle

    @property
    def name(self) -> str:
        return self.handle.name

    def call(self, command: Command, deadline: Deadline) -> Any:
        if isinstance(command, HoldGate | Release):
            self.held = command.reason if isinstance(command, HoldGate) else None
        if isinstance(command, Apply | Verify):
            command = replace(command, slab=self.handle.local(command.slab))
        return self.handle.obey(command, deadline)

    def status(self, deadline: Deadline) -> ReplicaStatus:
        return self.handle.status(deadline)

    def replace(self) -> None:
        """Start another engine with a closed gate. Raises `ReplicaDeadError` if Ray cannot, `CheckpointError`."""
        try:
            self.handle.replace(closed=True, held=self.held)
            self._settle(self.handle)
        except RayError as error:
            raise ReplicaDeadError(f"{self.name}: Ray could not start another engine: {error}") from error
