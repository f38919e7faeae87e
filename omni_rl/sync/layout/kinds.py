"""Names the five kinds that an element of an engine can be of."""

from enum import StrEnum


class Kind(StrEnum):
    """The kind of an element of the engine; every element is of exactly one."""

    RELEASED = "released"
    TRANSFORMED = "transformed"
    CONSTANT = "constant"
    """An element of a parameter that no released tensor fills any of (RADIO's layer scales)."""
    DERIVED = "derived"
    """An element of a buffer that no released tensor fills and checkpoints never hold (rotary and positional
    frequencies)."""
    PADDING = "padding"
    """An element beside released ones in the same parameter (rows of the vocabulary up to a multiple of 64)."""
