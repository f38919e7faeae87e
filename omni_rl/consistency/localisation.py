"""Finds the first module at which two models part: outputs of matching modules, in the order of the forward.

Shapes: N rows of a module's output (tokens, patches or frames), W its width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.bands import Bands
from omni_rl.consistency.records import SampleRecord

Activations = Mapping[str, NDArray[np.float32]]
"""The output [N, W] of each module for one sequence, by the module's name on both sides, in the order of the
forward."""

TOWERS = ("vision", "sound")
"""The prefixes of the names of tower modules: these run before the embeddings, and not on every sequence."""
INPUTS = ("vision.patches", "vision.video_patches", "sound.features")
"""The inputs of the towers: where these differ, no module is the reason."""


@dataclass(frozen=True)
class ModuleDifference:
    """How far the two sides' outputs of a module lie apart.

    `relative` is the norm of the difference over the norm of the engine's output; infinite where one of them is not
    finite or their shapes differ. `row` is where the difference is largest. `band` is the value up to which it is
    noise.
    """

    module: str
    relative: float
    row: int
    band: float

    @property
    def outside(self) -> bool:
        return not self.relative <= self.band


def profile(engine: Activations, train: Activations, bands: Bands) -> list[ModuleDifference]:
    """Return the difference of every module that both sides have, in the engine's order.

    A module without a calibrated band whose outputs have other shapes on the two sides is left out: the sides lay it
    out in their own ways.
    """
    found = []
    for module, ours in engine.items():
        theirs = train.get(module)
        if theirs is None or (ours.shape != theirs.shape and module not in bands.modules):
            continue
        relative, row = _apart(ours, theirs)
        found.append(ModuleDifference(module, relative, row, bands.of(module)))
    return found


def first_outside(modules: list[ModuleDifference]) -> ModuleDifference | None:
    """Return the first module, in the order of the forward, whose difference noise does not explain; None if there is
    none."""
    return next((module for module in modules if module.outside), None)


def flips_by_layer(records: list[SampleRecord]) -> dict[int, int]:
    """Count by MoE layer the positions of all sequences at which it chose another set of experts; layers without are
    left out.

    Every flip counts, not only a sequence's first: the later layers of a flipped position follow from it.
    """
    total: NDArray[np.int64] | None = None
    for record in records:
        differs = record.differing_choices
        if differs is not None:
            counts = differs.sum(0)
            total = counts if total is None else total + counts
    return {} if total is None else {layer: int(count) for layer, count in enumerate(total) if count}


def _apart(engine: NDArray[np.float32], train: NDArray[np.float32]) -> tuple[float, int]:
    if engine.shape != train.shape:
        return np.inf, 0
    with np.errstate(invalid="ignore", over="ignore"):
        ours = engine.astype(np.float64)
        rows = np.linalg.norm(train.astype(np.float64) - ours, axis=-1)
        whole, apart = float(np.linalg.norm(ours)), float(np.linalg.norm(rows))
    if not np.isfinite(whole) or not np.isfinite(apart):
        finite = np.isfinite(ours).all(-1) & np.isfinite(rows)
        return np.inf, int(np.argmin(finite))
    row = int(np.argmax(rows)) if len(rows) else 0
    return (apart / whole if whole else float(apart > 0)), row
