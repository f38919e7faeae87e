"""What both sides answered about a step, as the search for a cause looks at it."""

from collections.abc import Sequence

from omni_rl.consistency.attribution.evidence import SampleEvidence, TensorSeen
from omni_rl.rollout.types import Rollout
from omni_rl.train import pairing
from omni_rl.train.types import Score


def evidence(rollouts: Sequence[Rollout], scores: Sequence[Score]) -> list[SampleEvidence]:
    """One for each answer, in order."""
    records = pairing.train_against_decode(rollouts, scores)
    return [
        SampleEvidence(
            record,
            rollout.temperature,
            tuple(dict.fromkeys(span.version for span in rollout.version_spans)),
            score.version,
            tuple(_tensors(rollout, score)),
            rollout.sequence or None,
            score.sequence or None,
        )
        for record, rollout, score in zip(records, rollouts, scores, strict=True)
    ]


def _tensors(rollout: Rollout, score: Score) -> list[TensorSeen]:
    found = []
    for item, engine, train in zip(rollout.prompt.items, rollout.engine_digests, score.digests, strict=True):
        names = sorted(item.digests.keys() | engine.keys() | train.keys())
        found += [
            TensorSeen(item.modality, item.index, name, item.digests.get(name), engine.get(name), train.get(name))
            for name in names
        ]
    return found
