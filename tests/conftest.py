"""Fixtures that every room may use."""

from pathlib import Path

import pytest

from omni_rl.config import SMALL_CHECKPOINT


@pytest.fixture(scope="session")
def small_checkpoint() -> Path:
    """The committed small Omni, in bfloat16; read only."""
    return SMALL_CHECKPOINT
