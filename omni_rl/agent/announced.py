"""Holds the number of the trainer's newest update for an agent in the same process, which then knows what its engine
must hold."""

_newest: int | None = None


def announce(number: int) -> None:
    """Say that the trainer is about to bring update `number` to the engines."""
    global _newest
    _newest = number


def newest() -> int | None:
    """Return the number of the trainer's newest update; None if the trainer is not in this process or has announced
    none."""
    return _newest
