"""What an engine is asked when the policies part; every function runs in its thread, between two steps."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.attribution.evidence import Audit
from omni_rl.rollout.engine import RolloutEngine
from omni_rl.rollout.hooks import LOGITS, PLACES, places, recording
from omni_rl.rollout.types import Rescore, Rollout, SamplingSettings
from omni_rl.sync.replica import SlabRef

SEED = 20


@dataclass(frozen=True)
class EngineLegs:
    """`answers` at temperature 1; each scored by prefill in one batch with the caches as they were, alone with cold
    caches, and in one batch once more with cold caches."""

    answers: Sequence[Rollout]
    batch: Sequence[Rescore]
    alone: Sequence[Rescore]
    cold: Sequence[Rescore]


def checkpoint(engine: RolloutEngine) -> str:
    """See `RolloutEngine.checkpoint`."""
    return engine.checkpoint


def audit(engine: RolloutEngine, replica: str, slab: SlabRef, before: SlabRef | None) -> Audit:
    """See `RolloutEngine.audit`."""
    return engine.audit(replica, slab, before)


def legs(engine: RolloutEngine, given: Sequence[Rollout]) -> EngineLegs:
    """The legs of answers as they were sampled; those that were not, or at another temperature, are sampled anew."""
    answers = list(given)
    if any(rollout.temperature != 1.0 or not rollout.version_spans for rollout in given):
        sampling = SamplingSettings(max_tokens=max(len(r.ids) for r in given), seed=SEED, ignore_eos=True)
        answers = engine.apart(lambda: engine.submit([rollout.prompt for rollout in given], sampling))
    batch = engine.apart(lambda: engine.submit_rescoring(answers))
    alone = engine.score(answers)
    engine.forget_media()
    cold = engine.apart(lambda: engine.submit_rescoring(answers))
    return EngineLegs(answers, batch, alone, cold)


def activations(engine: RolloutEngine, rollout: Rollout) -> dict[str, NDArray[np.float32]]:
    """Outputs of every place of `hooks.PLACES` while the engine scores one answer alone."""
    with recording(places(engine.model, PLACES)) as taken:
        engine.rescore_alone(rollout)
    found = taken()
    # Each chunk of a prefill has logits of its last token, then of all of them: only of a single one are these the end.
    logits = found.pop(LOGITS)
    if len(rollout.prompt.ids) + len(rollout.ids) <= engine.settings.max_num_batched_tokens:
        found[LOGITS] = logits[-len(rollout.ids) :]
    return found
