"""Pairs what the two sides answered into records to compare."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.records import SampleRecord
from omni_rl.rollout.types import Rescore, Rollout
from omni_rl.train.types import Score

Side = Rollout | Rescore | Score
"""What one side answered: the logprobs and the experts of the same tokens."""


def train_against_decode(rollouts: Sequence[Rollout], scores: Sequence[Score]) -> list[SampleRecord]:
    """Pair the trainer's logprobs with those of sampling: the comparison that training depends on."""
    return [_record(rollout, rollout, score, score.margins) for rollout, score in zip(rollouts, scores, strict=True)]


def train_against_prefill(
    rollouts: Sequence[Rollout], scores: Sequence[Score], prefill: Sequence[Rescore]
) -> list[SampleRecord]:
    """Pair the trainer's scores, which have to be at temperature 1, with those of the engine's prefill, which are."""
    return [
        _record(rollout, leg, score, score.margins)
        for rollout, score, leg in zip(rollouts, scores, prefill, strict=True)
    ]


def engine_against_itself(
    rollouts: Sequence[Rollout], first: Sequence[Side], second: Sequence[Rescore], scores: Sequence[Score]
) -> list[SampleRecord]:
    """Pair one way of running the engine (`second`) with another (`first`), over the tokens that both have. The router
    margins are the trainer's."""
    return [
        _record(rollout, a, replace(b, logprobs=b.logprobs[: len(a.logprobs)]), score.margins)
        for rollout, a, b, score in zip(rollouts, first, second, scores, strict=True)
    ]


def trainer_against_itself(
    rollouts: Sequence[Rollout], first: Sequence[Score], second: Sequence[Score]
) -> list[SampleRecord]:
    """Pair one way of scoring with the trainer (`second`) with another (`first`)."""
    return [_record(rollout, a, b, b.margins) for rollout, a, b in zip(rollouts, first, second, strict=True)]


def _record(rollout: Rollout, first: Side, second: Side, margins: NDArray[np.float32] | None) -> SampleRecord:
    choices = (first.experts, second.experts, margins)
    if any(each is None for each in choices):
        choices = (None, None, None)
    prompt = rollout.prompt
    return SampleRecord(prompt.id, prompt.kind, len(prompt.ids), first.logprobs, second.logprobs, *choices)
