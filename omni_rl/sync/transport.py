"""Defines how weights get from the host of their source to the replicas, and what that is on one host."""

from typing import Protocol

from omni_rl.sync.replica import SlabRef
from omni_rl.sync.slab import Slab


class WeightTransport(Protocol):
    """Brings weights to replicas. A slab has the same file name on every host, so one `SlabRef` names it for all
    replicas."""

    @property
    def pushes(self) -> bool:
        """Whether the transport writes into the engines itself, instead of letting them copy from a slab. Such engines
        have nothing to go back to when an update fails: they are quarantined, and loaded anew."""

    def stage(self, slab: Slab) -> None:
        """Bring a sealed slab to where replicas take it from, while they generate.

        Raises `SourceError`, naming the host, if one cannot be reached, `SlabError` if one has no room.
        """

    def push(self) -> None:
        """Write what was staged into all engines, which stand still. Raises `WeightUpdateError`."""

    def holds(self, slab: SlabRef) -> bool:
        """Return whether every other host has the slab, sealed with that version, and undamaged."""


class SlabTransport:
    """The transport for replicas on the slab's host, which map it: nothing needs to be moved."""

    pushes = False

    def stage(self, slab: Slab) -> None:
        pass

    def push(self) -> None:
        raise AssertionError("engines copy from the slab")

    def holds(self, slab: SlabRef) -> bool:
        return True
