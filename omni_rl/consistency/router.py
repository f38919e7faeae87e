"""Router flips: where the two sides sent a token to different experts.

A flip changes that position's output by a whole expert, and every later token of the sequence sees it. Where flips are
rare accidents (float32) nothing after the first one says anything about agreement, if it was one: the scores were a
tie. A flip at a wide margin is no accident but what a fault does, and what follows it has to be judged. Where rounding
flips some position of nearly every sequence (bfloat16) only the flipped positions go, as long as these are few: other
weights, or another image, flip a quarter of a kind's tokens and more, and those have to be judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.records import SampleRecord

TIE = 1e-5
"""Margins below this are ties in float32."""
FEW = 4
"""Flipped tokens below this are accidents whatever their share: a short answer has but a few tokens."""
SHARE = 0.25
"""Of a kind's tokens: what rounding does not flip. Clean steps of 32 tokens a kind in bfloat16 had 3 at most."""
LeaveOut = Literal["nothing", "flipped", "after_flip"]
"""What metrics leave out: no token; tokens predicted at a position with a flip; all from a sequence's first flip on,
where that is a tie."""


@dataclass(frozen=True)
class Flip:
    """The first flip of a sequence: position (prompt included), MoE layer, and the trainer's router margin there.

    Later flips of the same sequence follow from it and are not listed.
    """

    sample: str
    position: int
    layer: int
    margin: float


def flipped_positions(record: SampleRecord) -> NDArray[np.bool_] | None:
    """Positions [P + T - 1] at which any layer chose another set of experts; None where choices are not known."""
    differs = record.differing_choices
    return None if differs is None else np.logical_or.reduce(differs, axis=-1)


def first_flip(record: SampleRecord) -> Flip | None:
    """The earliest position, and there the lowest layer, whose sets of chosen experts differ; None if none does."""
    differs = record.differing_choices
    if differs is None or record.margins is None or not differs.any():
        return None
    position, layer = divmod(int(differs.argmax()), differs.shape[1])
    return Flip(record.sample, position, layer, float(record.margins[position, layer]))


def accidental(flipped: int, tokens: int) -> bool:
    """Whether so many of a kind's tokens may be flipped by rounding alone."""
    return flipped < FEW or flipped < SHARE * tokens


def kept_of(records: Sequence[SampleRecord], rule: LeaveOut) -> list[NDArray[np.bool_]]:
    """`kept` of each, but of a kind of prompt whose flips are no accidents every token."""
    masks = [kept(record, rule) for record in records]
    if rule != "flipped":
        return masks
    for kind in dict.fromkeys(record.kind for record in records):
        its = [number for number, record in enumerate(records) if record.kind == kind]
        flipped, tokens = sum(int((~masks[n]).sum()) for n in its), sum(len(masks[n]) for n in its)
        if not accidental(flipped, tokens):
            for number in its:
                masks[number] = np.ones_like(masks[number])
    return masks


def kept(record: SampleRecord, rule: LeaveOut) -> NDArray[np.bool_]:
    """Which sampled tokens [T] a rule keeps.

    Sampled token t is predicted from position P + t - 1. A flip at position p touches the token predicted there, whose
    own computation went through another expert, and through the sequence's state every later one. What is no number is
    kept whatever the router did: a NaN flips it too.
    """
    tokens = len(record.rollout_logprobs)
    flipped = flipped_positions(record)
    if flipped is None or rule == "nothing":
        return np.ones(tokens, np.bool_)
    if rule == "after_flip":
        first = first_flip(record)
        if first is not None and not first.margin < TIE:
            return np.ones(tokens, np.bool_)
        flipped = np.logical_or.accumulate(flipped)
    finite = np.isfinite(record.rollout_logprobs) & np.isfinite(record.train_logprobs)
    result: NDArray[np.bool_] = ~flipped[record.prompt_tokens - 1 :] | ~finite
    return result
