"""Turns the answers of both sides into what the checks of a posted step look at."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.evidence import TensorSeen
from omni_rl.consistency.posted.step import PostedStep, Proofs, Spans
from omni_rl.rollout.types import Rollout
from omni_rl.train.types import Score


def posted_step(columns: StepColumns, rollouts: Sequence[Rollout], scores: Sequence[Score]) -> PostedStep:
    """Return a step as the service would see it if it were posted. `columns` has the same answers in the same order."""
    return replace(
        PostedStep.of(columns),
        ids=np.concatenate([np.empty(0, np.int64), *(rollout.ids for rollout in rollouts)]),
        prompts=[rollout.prompt.ids for rollout in rollouts],
        temperatures=np.array([rollout.temperature for rollout in rollouts], np.float64),
        proofs=_proofs(rollouts, scores),
    )


def _proofs(rollouts: Sequence[Rollout], scores: Sequence[Score]) -> Proofs:
    spans = [(number, span) for number, rollout in enumerate(rollouts) for span in rollout.version_spans]
    seen = [
        (number, tensor)
        for number, (rollout, score) in enumerate(zip(rollouts, scores, strict=True))
        for tensor in _tensors(rollout, score)
    ]
    return Proofs(
        sampled_by=Spans(
            np.array([number for number, _ in spans], np.int64),
            np.array([span.start for _, span in spans], np.int64),
            np.array([span.end for _, span in spans], np.int64),
            [span.version for _, span in spans],
        ),
        scored_by=[score.version for score in scores],
        tensors=len(seen),
        tensors_apart=[(number, tensor) for number, tensor in seen if not tensor.agreed],
        prompts=[
            (rollout.sequence or None, score.sequence or None) for rollout, score in zip(rollouts, scores, strict=True)
        ],
    )


def _tensors(rollout: Rollout, score: Score) -> list[TensorSeen]:
    found = []
    for item, engine, train in zip(rollout.prompt.items, rollout.engine_digests, score.digests, strict=True):
        names = sorted(item.digests.keys() | engine.keys() | train.keys())
        found += [
            TensorSeen(item.modality, item.index, name, item.digests.get(name), engine.get(name), train.get(name))
            for name in names
        ]
    return found
