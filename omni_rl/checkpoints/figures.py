"""What is known about a small checkpoint: stored beside it, so that tests and readers need not believe anybody."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

FIGURES = "figures.json"


@dataclass(frozen=True)
class Figures:
    """Accuracies are over the held-out digits: `sampled` is expected at temperature 1, `greedy` takes the best token.

    Both are those of the stored weights, computed in float32. `first_steps` (without digits) and
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


def load_figures(directory: Path) -> Figures:
    """The figures stored in a directory that `make-checkpoint` wrote."""
    return Figures(**json.loads((directory / FIGURES).read_text()))
