"""Checks the trainer against itself: an answer scored in a pack with others, alone, and alone once more."""

from collections.abc import Sequence
from dataclasses import dataclass

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.attribution.parting import apart, kinds_outside, outside
from omni_rl.consistency.bands import Bands
from omni_rl.consistency.evidence import Check, Finding
from omni_rl.consistency.records import SampleRecord


@dataclass(frozen=True)
class Packing:
    """The same answers as the trainer scores them: in a pack with others against alone, and alone twice."""

    packed_vs_alone: Sequence[SampleRecord]
    alone_twice: Sequence[SampleRecord]


def packing(found: Packing, step: float, bands: Bands) -> Finding:
    """Check whether what the trainer gives an answer depends on the answers that share its pack, or on chance."""
    leg, again = apart(found.packed_vs_alone, bands), apart(found.alone_twice, bands)
    numbers = {"mean": leg, "again_mean": again}
    if outside(again, step, bands):
        return Finding(
            Check.PACKED_AGAINST_ALONE,
            "explains",
            f"the trainer scores the same answer differently each time, by {again:.2g}: dropout is on, or an operation "
            "gives no two equal results; put the model into evaluation mode to score",
            Cause.KERNEL,
            numbers,
            modalities=kinds_outside(found.alone_twice, bands),
        )
    if outside(leg, step, bands):
        return Finding(
            Check.PACKED_AGAINST_ALONE,
            "explains",
            f"the trainer scores an answer {leg:.2g} differently in a pack than alone: attention or state leaks from "
            "one answer of a pack into the next",
            Cause.TRAIN_PACKING,
            numbers,
            modalities=kinds_outside(found.packed_vs_alone, bands),
        )
    return Finding(
        Check.PACKED_AGAINST_ALONE,
        "clear",
        f"the trainer scores an answer the same in a pack and alone, up to {leg:.2g}",
        numbers=numbers,
    )
