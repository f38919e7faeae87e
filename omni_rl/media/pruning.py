"""Efficient video sampling (EVS): how many tokens of a video are kept, and where the video's text stands among them.

With pruning on, the engine keeps the tokens that change most. Which these are depends on the weights, so a prompt's ids
only have the right number of slots, all of them in the first tubelet (a group of frames that make one set of features);
the sequence that is embedded has the kept tokens of each tubelet behind that tubelet's own time stamp. Shapes: F
tubelets.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Pruning:
    """How one video is pruned. `rate` is the share of tokens that goes, 0 < rate < 1. `text_before` is int64 [F]: how
    many of the span's text tokens (all but its slots) precede the kept tokens of each tubelet."""

    rate: float
    text_before: NDArray[np.int64]


def kept_count(tubelets: int, tokens: int, rate: float) -> int:
    """Return how many of `tubelets` x `tokens` are kept, by the engine's rule, under which the first tubelet is never
    cut."""
    return max(tokens, int(tubelets * tokens * (1 - rate)))
