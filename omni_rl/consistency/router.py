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
