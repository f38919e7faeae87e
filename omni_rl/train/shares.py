"""Weighs the tokens of a step: how much each counts in the step's loss. Imports no torch, which a job has no other need
of.

Shapes: T tokens of one answer.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Aggregation = Literal["token", "sequence"]


def shares(lengths: Sequence[int], included: Sequence[bool], how: Aggregation) -> list[NDArray[np.float64]]:
    """Return each token's share of a step's loss, float64 [T] for each of the answers of `lengths`; the shares add up
    to 1.

    With `token` every token weighs the same (DAPO); with `sequence` the loss is the mean of the answers' means (GRPO).
    The tokens of an answer that is not `included` have share 0: for example a truncated one under DAPO's over-long
    filtering, or one of a group that teaches nothing.
    """
    counted = [length if use else 0 for length, use in zip(lengths, included, strict=True)]
    tokens, sequences = sum(counted), sum(length > 0 for length in counted)
    found = []
    for length, count in zip(lengths, counted, strict=True):
        share = 0.0 if not count else 1 / tokens if how == "token" else 1 / (sequences * count)
        found.append(np.full(length, share))
    return found
