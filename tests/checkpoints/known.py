"""What a small checkpoint says of itself."""

import json
from pathlib import Path

from omni_rl.checkpoints.figures import FIGURES, Figures


def known_figures(directory: Path) -> Figures:
    return Figures(**json.loads((directory / FIGURES).read_text()))
