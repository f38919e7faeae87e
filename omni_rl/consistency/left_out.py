"""What router flips leave out of the figures, and when a flip is a tie: one rule for every judge and every search.

A flip changes that position's output by a whole expert, and every later token of the sequence sees it. A flip where the
scores were a tie is an accident of rounding; one at a wide margin is what a fault does, and excuses nothing. Where ties
are rare (float32) nothing after a sequence's first one says anything about agreement. Where rounding flips some
position of nearly every sequence (bfloat16) only the flipped positions are left out, as long as these are few: other
weights, or another image, flip a quarter of an answer's or of a kind's tokens and more, and those have to be judged.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.columns import Mask, StepColumns
from omni_rl.consistency.records import SampleRecord
from omni_rl.consistency.router import first_flip, flip_margins

LeaveOut = Literal["nothing", "flipped", "after_flip"]
"""What figures leave out. nothing: no token. flipped: tokens that were predicted at a position whose flip is a tie.
after_flip: all tokens from a sequence's first flip on, if that is a tie."""


@dataclass(frozen=True)
class Ties:
    """Which of a router's flips are put down to ties. `margin` is the trainer's margin below which a flip is one."""

    leave_out: LeaveOut
    margin: float


TIES: dict[str, Ties] = {"float32": Ties("after_flip", 1e-5), "bfloat16": Ties("flipped", 1e-2)}
TIES |= {"float16": TIES["bfloat16"], "fp8": TIES["bfloat16"]}
"""The ties of each dtype. In clean bfloat16 steps the widest first flip of 160 answers has a margin of 9e-3; what
follows it in its sequence may be wider, and is judged: 5 tokens of 5,120."""
NOTHING = Ties("nothing", 0.0)
FEW = 4
"""The number of flipped tokens below which they are accidents whatever their share: a short answer has but a few
tokens."""
SHARE = 0.25
"""The share of an answer's or a kind's tokens that rounding does not flip. Clean answers of 32 tokens in bfloat16 had 4
flipped tokens at most, clean kinds 3 %."""
MOST = 3.0
"""The abs d that a token may have for no reason but a tie; what goes beyond it is never put down to one. Of 150,000
tokens of clean bfloat16 steps the furthest was 2.3 off."""


def kept_tokens(columns: StepColumns, flipped: Mapping[int, SampleRecord], ties: Ties) -> Mask | None:
    """Return which of a step's tokens [T] are in its figures; None: all. `flipped` has the sequences with a flip, by
    number.

    Of an answer or a kind of prompt whose flips are too many for accidents, or of a kind that would be left without a
    token, every token is kept.
    """
    counted = columns.loss_mask
    if not flipped or ties.leave_out == "nothing":
        return counted
    if counted is None:
        counted = np.ones(columns.tokens, np.bool_)
    excused = np.zeros(columns.tokens, np.bool_)
    of_sequence = {n: slice(columns.offsets[n], columns.offsets[n + 1]) for n in flipped}
    for n, record in flipped.items():
        excused[of_sequence[n]] = counted[of_sequence[n]] & ~kept(record, ties)
    kinds = list(dict.fromkeys(columns.kinds[n] for n in flipped))
    codes = np.array([kinds.index(kind) if kind in kinds else -1 for kind in columns.kinds], np.int64)
    of_token = np.repeat(codes, np.diff(columns.offsets))
    of_kind = [counted & (of_token == code) for code in range(len(kinds))]
    for its in (*of_kind, *of_sequence.values()):
        if _too_many(int(excused[its].sum()), int(counted[its].sum()), ties):
            excused[its] = False
    for its in of_kind:
        if excused[its].all():
            excused[its] = False
    return counted & ~excused


def _too_many(flipped: int, tokens: int, ties: Ties) -> bool:
    """Return whether ties do not flip that many of so many tokens. After a first tie, everything is expected to be
    apart."""
    return ties.leave_out == "flipped" and flipped >= FEW and flipped >= SHARE * tokens


def kept(record: SampleRecord, ties: Ties) -> NDArray[np.bool_]:
    """Return which sampled tokens [T] of a sequence are kept, whatever the other sequences of its kind show.

    Sampled token t is predicted from position P + t - 1. A flip at position p touches the token predicted there, whose
    own computation went through another expert, and through the sequence's state every later one. A NaN or infinite
    logprob is kept whatever the router did: a NaN flips it too. A margin that is NaN is no tie's.
    """
    tokens = len(record.rollout_logprobs)
    margins = flip_margins(record)
    if margins is None or ties.leave_out == "nothing":
        return np.ones(tokens, np.bool_)
    excused = margins < ties.margin
    if ties.leave_out == "after_flip":
        first = first_flip(record)
        if first is None or not excused[first.position]:
            return np.ones(tokens, np.bool_)
        excused = np.logical_or.accumulate(excused)
    finite = np.isfinite(record.rollout_logprobs) & np.isfinite(record.train_logprobs)
    result: NDArray[np.bool_] = ~excused[record.prompt_tokens - 1 :] | ~finite
    return result
