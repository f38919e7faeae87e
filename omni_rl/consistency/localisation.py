"""The first module at which two models part: outputs of matching modules, in the order of the forward.

Shapes: N rows of a module's output (tokens, patches or frames), W its width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.bands import Bands
from omni_rl.consistency.records import SampleRecord

Activations = Mapping[str, NDArray[np.float32]]
"""Module by its name on both sides to its output [N, W] for one sequence, in the order of the forward."""

TOWERS = ("vision", "sound")
"""A module's name begins with its part: these run before the embeddings, and not on every sequence."""
INPUTS = ("vision.patches", "vision.video_patches", "sound.features")
"""What a tower is given: it is no module's doing if these differ."""


@dataclass(frozen=True)
class ModuleDifference:
    """`relative`: norm of the difference over the norm of the engine's output; infinite where one of them is not
    finite or their shapes differ. `row`: where it is largest. `band`: up to where it is noise."""

    module: str
    relative: float
    row: int
    band: float

    @property
    def outside(self) -> bool:
        return not self.relative <= self.band


def profile(engine: Activations, train: Activations, bands: Bands) -> list[ModuleDifference]:
    """Every module that both sides have, in the engine's order.

    Without a calibrated band, a module whose outputs have other shapes on the two sides is one that they lay out in
    their own ways, and is left out.
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
    """The first in the order of the forward that noise does not explain."""
    return next((module for module in modules if module.outside), None)


def flips_by_layer(records: list[SampleRecord]) -> dict[int, int]:
    """Positions of all sequences at which a MoE layer chose another set of experts; layers without one are left out.

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
