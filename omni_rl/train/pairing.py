"""Turns what the two sides answered into records, and proves that both saw the same media."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.records import SampleRecord
from omni_rl.rollout.types import Rescore, Rollout
from omni_rl.train.types import Score


def train_against_decode(rollouts: Sequence[Rollout], scores: Sequence[Score]) -> list[SampleRecord]:
    """The comparison that training depends on: trainer's logprobs against the ones that were sampled with."""
    return [
        _record(rollout, rollout.logprobs, rollout.experts, score.logprobs, score.experts, score.margins)
        for rollout, score in zip(rollouts, scores, strict=True)
    ]


def train_against_prefill(
    rollouts: Sequence[Rollout], scores: Sequence[Score], prefill: Sequence[Rescore]
) -> list[SampleRecord]:
    """Trainer against the engine's prefill, both at temperature 1."""
    return [
        _record(rollout, leg.logprobs, leg.experts, score.logprobs, score.experts, score.margins)
        for rollout, score, leg in zip(rollouts, scores, prefill, strict=True)
    ]


def engine_against_itself(
    rollouts: Sequence[Rollout], first: Sequence[Rescore], second: Sequence[Rescore], scores: Sequence[Score]
) -> list[SampleRecord]:
    """One way of running the engine (`second`) against another (`first`); router margins are the trainer's."""
    return [
        _record(rollout, a.logprobs, a.experts, b.logprobs, b.experts, score.margins)
        for rollout, a, b, score in zip(rollouts, first, second, scores, strict=True)
    ]


def decode_as_leg(rollouts: Sequence[Rollout]) -> list[Rescore]:
    """The sampling pass in the shape of a leg."""
    return [Rescore(rollout.logprobs, rollout.experts) for rollout in rollouts]


def media_mismatches(rollouts: Sequence[Rollout], scores: Sequence[Score]) -> list[str]:
    """One sentence for each media tensor that the renderer, the engine's model and the trainer's do not share."""
    found = []
    for rollout, score in zip(rollouts, scores, strict=True):
        for index, item in enumerate(rollout.prompt.items):
            engine, trainer = rollout.engine_digests[index], score.digests[index]
            for name in sorted(item.digests.keys() | engine.keys() | trainer.keys()):
                seen = {item.digests.get(name), engine.get(name), trainer.get(name)}
                if len(seen) > 1:
                    found.append(
                        f"sample {rollout.prompt.id}: {item.modality} {item.index}, tensor {name}: rendered "
                        f"{_short(item.digests.get(name))}, engine {_short(engine.get(name))}, "
                        f"trainer {_short(trainer.get(name))}"
                    )
    return found


def version_mismatches(rollouts: Sequence[Rollout], scores: Sequence[Score]) -> list[str]:
    """One sentence for each sample with a token that was sampled under other weights than it was scored with."""
    return [
        f"sample {rollout.prompt.id}: sampled under {', '.join(sorted(stale))}, scored with {score.version}"
        for rollout, score in zip(rollouts, scores, strict=True)
        if (stale := {span.version for span in rollout.version_spans} - {score.version})
    ]


def _record(
    rollout: Rollout,
    rollout_logprobs: NDArray[np.float64],
    rollout_experts: NDArray[np.int16] | None,
    train_logprobs: NDArray[np.float64],
    train_experts: NDArray[np.int16] | None,
    margins: NDArray[np.float32] | None,
) -> SampleRecord:
    return SampleRecord(
        rollout.prompt.id,
        rollout.prompt.kind,
        len(rollout.prompt.ids),
        rollout_logprobs,
        train_logprobs,
        rollout_experts,
        train_experts,
        margins,
    )


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "nothing"
