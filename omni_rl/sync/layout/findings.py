"""Describes what a layout map finds in an engine, and how messages say it."""

from collections.abc import Sequence
from dataclasses import dataclass

from omni_rl.counting import counted
from omni_rl.sync.layout.kinds import Kind

NAMES_IN_MESSAGE = 10


@dataclass(frozen=True)
class Coverage:
    """How many of an engine's elements are of each kind; the five counts add up to `total`, all that its storages
    hold."""

    released: int
    transformed: int
    constant: int
    derived: int
    padding: int
    total: int


@dataclass(frozen=True)
class Mismatch:
    """`elements` elements that an engine should hold and does not, the first at element `index` of `parameter`.

    `tensor` is the released name they come from, None for elements that must hold a recorded value. Without an `index`
    the engine holds what it was given, but that is not what was sent.
    """

    tensor: str | None
    parameter: str
    kind: Kind
    index: int | None
    elements: int

    def __str__(self) -> str:
        source = f" (released as {self.tensor})" if self.tensor else ""
        if self.index is None:
            return f"{self.parameter}{source}: what was given to the engine does not have the checksum of what was sent"
        differ = counted(self.elements, f"{self.kind} element differs", f"{self.kind} elements differ")
        return f"{self.parameter}{source}: {differ}, the first is {self.index}"


def named(mismatches: Sequence[Mismatch]) -> str:
    """Return the first mismatches as text for a message."""
    return listed([str(mismatch) for mismatch in mismatches], "; ")


def listed(names: Sequence[str], separator: str = ", ") -> str:
    """Return the first few names as text for a message."""
    return separator.join(names[:NAMES_IN_MESSAGE]) + " ..." * (len(names) > NAMES_IN_MESSAGE)
