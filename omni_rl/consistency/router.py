"""Router flips: where the two sides sent a token to different experts."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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


def flip_margins(record: SampleRecord) -> NDArray[np.float32] | None:
    """Return the trainer's margin [P + T - 1] of each position's lowest flip, infinite without one; None without
    choices.

    Flips of the layers above the lowest follow from it.
    """
    differs = record.differing_choices
    if differs is None or record.margins is None:
        return None
    result = np.full(len(differs), np.inf, np.float32)
    at = np.flatnonzero(np.logical_or.reduce(differs, axis=-1))
    result[at] = record.margins[at, differs[at].argmax(axis=-1)]
    return result


def first_flip(record: SampleRecord) -> Flip | None:
    """Return the flip at the earliest position, and there at the lowest layer, whose sets of experts differ; None
    without one."""
    differs = record.differing_choices
    if differs is None or record.margins is None or not differs.any():
        return None
    position, layer = divmod(int(differs.argmax()), differs.shape[1])
    return Flip(record.sample, position, layer, float(record.margins[position, layer]))
