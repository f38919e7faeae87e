"""A rollout engine as a replica of weight syncs."""

from typing import Any

from ray.exceptions import RayError

from omni_rl.errors import ReplicaDeadError
from omni_rl.rollout.actor import RolloutHandle
from omni_rl.sync.replica import Command, Deadline, ReplicaStatus


class RolloutReplica:
    """`omni_rl.sync.replica.Replica` over a handle; the handle stays its owner's to close."""

    def __init__(self, handle: RolloutHandle) -> None:
        self.handle = handle

    @property
    def name(self) -> str:
        return self.handle.name

    def call(self, command: Command, deadline: Deadline) -> Any:
        return self.handle.obey(command, deadline)

    def status(self, deadline: Deadline) -> ReplicaStatus:
        return self.handle.status(deadline)

    def replace(self) -> None:
        """Start another engine with a closed gate. Raises `ReplicaDeadError` if Ray cannot, `CheckpointError`."""
        try:
            self.handle.replace(closed=True)
        except RayError as error:
            raise ReplicaDeadError(f"{self.name}: Ray could not start another engine: {error}") from error
