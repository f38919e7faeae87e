"""Finds out by loading where every released element lies in an engine, proves it, and copies and verifies by it."""

from omni_rl.sync.layout.cache import prepare
from omni_rl.sync.layout.findings import Coverage, Mismatch, named
from omni_rl.sync.layout.kinds import Kind
from omni_rl.sync.layout.map import LayoutMap
from omni_rl.sync.layout.seal import MapSeal

__all__ = ["Coverage", "Kind", "LayoutMap", "MapSeal", "Mismatch", "named", "prepare"]
