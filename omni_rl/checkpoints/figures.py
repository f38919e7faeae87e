"""Stores what is known about a small checkpoint beside it, so that tests and readers can check it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

FIGURES = "figures.json"


@dataclass(frozen=True)
class Figures:
    """What was measured of a checkpoint, and how it was made.

    Accuracies are over the held-out digits: `sampled_accuracy` is expected at temperature 1, `greedy_accuracy` takes
    the best token. Both are those of the stored weights, computed in float32. `first_steps` (without digits) and
    `digit_steps` count optimiser steps; `bytes` is the size of the whole directory without this file.
    """

    command: str
    seed: int
    pattern: str
    parameters: int
    dtype: str
    vocabulary: int
    bytes: int
    first_steps: int
    digit_steps: int
    held_out: int
    sampled_accuracy: float
    greedy_accuracy: float
    torch: str

    def save(self, directory: Path) -> None:
        (directory / FIGURES).write_text(json.dumps(asdict(self), indent=1) + "\n")
