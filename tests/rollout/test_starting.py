"""An engine that is still starting says so, and whoever wants something of it waits."""

import asyncio
import os

import pytest

from omni_rl.rollout.actor import RolloutActor
from omni_rl.sync.replica import HoldGate, ReplicaStatus


def test_its_status_is_answered_and_commands_wait() -> None:
    async def ask() -> None:
        actor = RolloutActor()
        assert await actor.status() == ReplicaStatus("", os.getpid(), 0, "closed", None, "the engine is starting")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(actor.obey(HoldGate(1, "hold", "maintenance")), 0.05)

    asyncio.run(ask())
