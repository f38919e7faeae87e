"""The dense family as a package of its own would bring it: by an entry point, which every process finds."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from omni_rl.models import families

ROOT = Path(__file__).parents[3]


@contextmanager
def installed(site: Path, family: str = "tests.models.dense.family:FAMILY") -> Iterator[None]:
    """`site`, an empty directory, becomes a place of packages, and has one that brings the `family`."""
    metadata = site / "dense_family-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: dense-family\nVersion: 1.0\n")
    entry = f"[{families.ENTRY_POINTS}]\ndense = {family}\n"
    (metadata / "entry_points.txt").write_text(entry)
    places = [str(site), str(ROOT)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, *places])
        # For the processes that this one starts.
        patch.setenv("PYTHONPATH", os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), *places]))
        families.families.cache_clear()
        yield
    families.families.cache_clear()
