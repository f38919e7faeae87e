"""Lets weight syncs reach a rollout engine as a replica."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ray.exceptions import RayError

from omni_rl.errors import ReplicaDeadError
from omni_rl.rollout.handle import RolloutHandle
from omni_rl.sync.replica import Apply, Command, Deadline, HoldGate, Release, ReplicaStatus, Verify


class RolloutReplica:
    """Implements `omni_rl.sync.replica.Replica` with a handle, which the handle's owner closes.

    `held` is why the engine must generate nothing, None if it may; it holds the successor of a dead engine as well.
    `settle` is called with the handle for each successor, which may be on another host, before it gets weights.
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
        """Start another engine with a closed gate. Raises `EngineDeadError` if Ray cannot start one, `CheckpointError`
        if the checkpoint cannot be served."""
        try:
            self.handle.replace(closed=True, held=self.held)
            self._settle(self.handle)
        except RayError as error:
            raise ReplicaDeadError(f"{self.name}: Ray could not start another engine: {error}") from error
