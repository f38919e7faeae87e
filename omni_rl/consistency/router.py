"""Router flips: where the two sides sent a token to different experts.

A flip changes that position's output by a whole expert, and every later token of the sequence sees it: what comes
after the first flip says nothing about agreement.
"""

from dataclasses import dataclass

import numpy as np

from omni_rl.consistency.records import SampleRecord


@dataclass(frozen=True)
class Flip:
    """The first flip of a sequence: position (prompt included), MoE layer, and the trainer's router margin there.

    Later flips of the same sequence follow from it and are not listed.
    """

    sample: str
    position: int
    layer: int
    margin: float


def first_flip(record: SampleRecord) -> Flip | None:
    """The earliest position, and there the lowest layer, whose sets of chosen experts differ; None if none does."""
    if record.rollout_experts is None or record.train_experts is None or record.margins is None:
        return None
    differs = (np.sort(record.rollout_experts, axis=-1) != np.sort(record.train_experts, axis=-1)).any(axis=-1)
    places = np.argwhere(differs)
    if not len(places):
        return None
    position, layer = (int(i) for i in places[0])
    return Flip(record.sample, position, layer, float(record.margins[position, layer]))


def tokens_before(flip: Flip | None, record: SampleRecord) -> int:
    """How many sampled tokens, from the first, a flip did not touch.

    Sampled token t is predicted from position P + t - 1, so a flip at position p touches every t >= p - P + 1.
    """
    if flip is None:
        return len(record.rollout_logprobs)
    return max(0, min(len(record.rollout_logprobs), flip.position - record.prompt_tokens + 1))
