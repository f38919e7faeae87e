"""Turns what the two sides answered into records."""

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
    """One way of running the engine (`second`) against another (`first`), over the tokens that both have; router
    margins are the trainer's."""
    return [
        _record(rollout, a.logprobs, a.experts, b.logprobs[: len(a.logprobs)], b.experts, score.margins)
        for rollout, a, b, score in zip(rollouts, first, second, scores, strict=True)
    ]


def trainer_against_itself(
    rollouts: Sequence[Rollout], first: Sequence[Score], second: Sequence[Score]
) -> list[SampleRecord]:
    """One way of scoring (`second`) against another (`first`)."""
    return [
        _record(rollout, a.logprobs, a.experts, b.logprobs, b.experts, b.margins)
        for rollout, a, b in zip(rollouts, first, second, strict=True)
    ]


def decode_as_leg(rollouts: Sequence[Rollout]) -> list[Rescore]:
    """The sampling pass in the shape of a leg."""
    return [Rescore(rollout.logprobs, rollout.experts) for rollout in rollouts]


def _record(
    rollout: Rollout,
    rollout_logprobs: NDArray[np.float64],
    rollout_experts: NDArray[np.int16] | None,
    train_logprobs: NDArray[np.float64],
    train_experts: NDArray[np.int16] | None,
    margins: NDArray[np.float32] | None,
) -> SampleRecord:
    choices = (rollout_experts, train_experts, margins)
    if any(each is None for each in choices):
        choices = (None, None, None)
    prompt = rollout.prompt
    return SampleRecord(prompt.id, prompt.kind, len(prompt.ids), rollout_logprobs, train_logprobs, *choices)
