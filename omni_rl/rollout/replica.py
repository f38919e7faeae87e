"""A rollout engine as a replica of weight syncs."""

from typing import Any

from ray.exceptions import RayError

from omni_rl.errors import ReplicaDeadError
from omni_rl.rollout.actor import RolloutHandle
from omni_rl.sync.replica import Command, Deadline, Hold, Release, ReplicaStatus


class RolloutReplica:
    """`omni_rl.sync.replica.Replica` over a handle; the handle stays its owner's to close.

    `held`: what holds it, which also holds the successor of a dead one.
    """

    def __init__(self, handle: RolloutHandle, held: str | None = None) -> None:
        self.handle = handle
        self.held = held

    @property
    def name(self) -> str:
        return self.handle.name

    def call(self, command: Command, deadline: Deadline) -> Any:
        if isinstance(command, Hold | Release):
            self.held = command.reason if isinstance(command, Hold) else None
        return self.handle.obey(command, deadline)

    def status(self, deadline: Deadline) -> ReplicaStatus:
        return self.handle.status(deadline)

    def replace(self) -> None:
        """Start another engine with a closed gate. Raises `ReplicaDeadError` if Ray cannot, `CheckpointError`."""
        try:
            self.handle.replace(closed=True, held=self.held)
        except RayError as error:
            raise ReplicaDeadError(f"{self.name}: Ray could not start another engine: {error}") from error
