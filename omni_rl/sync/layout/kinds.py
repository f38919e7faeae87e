"""The five things that an element of an engine can be."""

from enum import StrEnum


class Kind(StrEnum):
    """What every element of the engine is exactly one of."""

    RELEASED = "released"
    TRANSFORMED = "transformed"
    CONSTANT = "constant"
    """No released tensor fills any of this parameter (RADIO's layer scales)."""
    DERIVED = "derived"
    """The same, of a buffer that checkpoints never hold (rotary and positional frequencies)."""
    PADDING = "padding"
    """Beside released elements in one parameter (rows of the vocabulary up to a multiple of 64)."""
