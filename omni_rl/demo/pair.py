"""Starts the pair of policies that the demo's settings ask for."""

import uuid
from contextlib import AbstractContextManager

from omni_rl.config import DemoSettings
from omni_rl.policies.local import LocalPair, started
from omni_rl.rollout.settings import EngineSettings
from omni_rl.sync.journal import Journal
from omni_rl.train.settings import TrainSettings


def demo_pair(settings: DemoSettings, journal: Journal | None = None) -> AbstractContextManager[LocalPair]:
    """Return a context manager that starts the pair the settings ask for; see `omni_rl.policies.local.started`."""
    engine = EngineSettings(
        model=settings.model,
        dtype=settings.dtype,
        # Each run needs its own name, because the slabs of all runs of a machine lie side by side.
        run=f"demo-{uuid.uuid4().hex[:8]}",
        max_num_seqs=5 * settings.prompts_per_kind,
        max_num_batched_tokens=4096,
        batch_invariant=settings.engine_is_batch_invariant,
    )
    train = TrainSettings(
        world_size=settings.world_size,
        dtype=settings.dtype,
        numerics=settings.numerics,
        learning_rate=settings.learning_rate,
    )
    return started(engine, train, replicas=settings.replicas, nodes=settings.nodes, journal=journal)
