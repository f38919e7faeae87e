"""Asks an engine for evidence when engine and trainer disagree; every function runs in the engine's thread, between two
steps.

Whoever asks imports this module to name the function, and needs neither vLLM nor torch for that: both take seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.evidence import Audit
from omni_rl.rollout.types import Decoded, Rescore, Rollout, SamplingSettings
from omni_rl.sync.replica import SlabRef

if TYPE_CHECKING:
    from omni_rl.rollout.engine import RolloutEngine

SEED = 20


@dataclass(frozen=True)
class EngineLegs:
    """The same answers, scored in four ways: by prefill at temperature 1 in one `batch` with the caches as they were,
    each answer `alone` with cold caches, and in one batch with `cold` caches; and `decoded` token by token."""

    batch: Sequence[Rescore]
    decoded: Sequence[Decoded]
    alone: Sequence[Rescore]
    cold: Sequence[Rescore]


def checkpoint(engine: "RolloutEngine") -> str:
    """Return the digest of the weights that the engine was loaded with; see `RolloutEngine.checkpoint`."""
    return engine.checkpoint


def audit(engine: "RolloutEngine", replica: str, slab: SlabRef, before: SlabRef | None) -> Audit:
    """Compare every byte that the engine holds with a slab, changing nothing; see `RolloutEngine.audit`."""
    return engine.audit(replica, slab, before)


def legs(engine: "RolloutEngine", answers: Sequence[Rollout]) -> EngineLegs:
    """Score answers in the four ways of `EngineLegs`, whoever sampled them."""
    from omni_rl.rollout.forced import decode

    # What the caches hold was there when the step was sampled: nothing may drop it before it was looked at.
    batch = engine.apart(lambda: engine.submit_rescoring(answers))
    decoded = decode(engine, answers)
    alone = engine.score(answers)
    engine.forget_media()
    cold = engine.apart(lambda: engine.submit_rescoring(answers))
    return EngineLegs(batch, decoded, alone, cold)


def sample_again(engine: "RolloutEngine", answers: Sequence[Rollout]) -> list[Rollout]:
    """Sample other answers to the same prompts, as long and at the same temperature, with the engine as it is now."""
    names: list[str] = []

    def submit() -> list[str]:
        for place, answer in enumerate(answers):
            sampling = SamplingSettings(len(answer.ids), answer.temperature, SEED + place, ignore_eos=True)
            names.extend(engine.submit([answer.prompt], sampling))
        return names

    return engine.apart(submit)


def activations(engine: "RolloutEngine", rollout: Rollout) -> dict[str, NDArray[np.float32]]:
    """Score one answer alone, and return what the engine computes meanwhile at every place of `Family.in_engine`.

    The logits are among the places only if the whole sequence fits into one chunk of a prefill.
    """
    from omni_rl.models.recording import LOGITS, places, recording

    with recording(places(engine.model, engine.family.in_engine)) as taken:
        engine.rescore_alone(rollout)
    found = taken()
    # Each chunk of a prefill has logits of its last token, then of all of them: only of a single one are these the end.
    logits = found.pop(LOGITS)
    if len(rollout.prompt.ids) + len(rollout.ids) <= engine.settings.max_num_batched_tokens:
        found[LOGITS] = logits[-len(rollout.ids) :]
    return found
