"""What router flips leave out of the figures, and when a flip is a tie: said here, for every judge and every search.

A flip changes that position's output by a whole expert, and every later token of the sequence sees it. Where flips are
rare accidents (float32) nothing after the first one says anything about agreement, if it was one: the scores were a
tie. A flip at a wide margin is no accident but what a fault does, and what follows it has to be judged. Where rounding
flips some position of nearly every sequence (bfloat16) only the flipped positions go, as long as these are few: other
weights, or another image, flip a quarter of a kind's tokens and more, and those have to be judged.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.columns import Mask, StepColumns
from omni_rl.consistency.records import SampleRecord
from omni_rl.consistency.router import first_flip, flipped_positions

LeaveOut = Literal["nothing", "flipped", "after_flip"]
"""What figures leave out: no token; tokens predicted at a position with a flip; all from a sequence's first flip on,
where that is a tie."""


@dataclass(frozen=True)
class Ties:
    """What of a router's flips is put down to ties. `margin`: the trainer's margin below which a flip is one."""

    leave_out: LeaveOut
    margin: float


TIES: Mapping[str, Ties] = {"float32": Ties("after_flip", 1e-5), "bfloat16": Ties("flipped", 1e-2)}
"""By dtype. Flips of clean bfloat16 steps have a margin of 1e-3 in the median."""
NOTHING = Ties("nothing", 0.0)
FEW = 4
"""Flipped tokens below this are accidents whatever their share: a short answer has but a few tokens."""
SHARE = 0.25
"""Of a kind's tokens: what rounding does not flip. Clean steps of 32 tokens a kind in bfloat16 had 3 at most."""
MOST = 2.0
"""The abs d that a token may have for no reason but a tie; what goes beyond it is never put down to one."""


def kept_tokens(columns: StepColumns, flipped: Mapping[int, SampleRecord], ties: Ties) -> Mask | None:
    """Which of a step's tokens [T] are in its figures; None: all. `flipped`: the sequences with a flip, by number.

    Of a kind of prompt whose flips are no accidents, or would leave no token, every token is kept.
    """
    counted = columns.loss_mask
    if not flipped or ties.leave_out == "nothing":
        return counted
    if counted is None:
        counted = np.ones(columns.tokens, np.bool_)
    keeps = counted.copy()
    for n, record in flipped.items():
        keeps[columns.offsets[n] : columns.offsets[n + 1]] &= kept(record, ties)
    kinds = list(dict.fromkeys(columns.kinds[n] for n in flipped))
    of_sequence = np.array([kinds.index(kind) if kind in kinds else -1 for kind in columns.kinds], np.int64)
    of_token = np.repeat(of_sequence, np.diff(columns.offsets))
    for code in range(len(kinds)):
        its = counted & (of_token == code)
        tokens, left = int(its.sum()), int(keeps[its].sum())
        if not left or (ties.leave_out == "flipped" and not accidental(tokens - left, tokens)):
            keeps |= its
    return keeps


def accidental(flipped: int, tokens: int) -> bool:
    """Whether so many of a kind's tokens may be flipped by rounding alone."""
    return flipped < FEW or flipped < SHARE * tokens


def kept(record: SampleRecord, ties: Ties) -> NDArray[np.bool_]:
    """Which sampled tokens [T] of a sequence are kept, whatever the others of its kind show.

    Sampled token t is predicted from position P + t - 1. A flip at position p touches the token predicted there, whose
    own computation went through another expert, and through the sequence's state every later one. What is no number is
    kept whatever the router did: a NaN flips it too.
    """
    tokens = len(record.rollout_logprobs)
    flipped = flipped_positions(record)
    if flipped is None or ties.leave_out == "nothing":
        return np.ones(tokens, np.bool_)
    if ties.leave_out == "after_flip":
        first = first_flip(record)
        if first is not None and not first.margin < ties.margin:
            return np.ones(tokens, np.bool_)
        flipped = np.logical_or.accumulate(flipped)
    finite = np.isfinite(record.rollout_logprobs) & np.isfinite(record.train_logprobs)
    result: NDArray[np.bool_] = ~flipped[record.prompt_tokens - 1 :] | ~finite
    return result
