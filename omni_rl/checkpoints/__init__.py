"""The small Omni checkpoint that ships with the package, and what makes it and others like it."""

from pathlib import Path

from omni_rl import runtime

runtime.prepare()

SMALL = Path(__file__).parent / "small"
