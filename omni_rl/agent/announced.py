"""The trainer's newest update, for an agent in the same process: which then knows what its engine is to hold."""

_newest: int | None = None


def announce(number: int) -> None:
    """Say that the trainer is about to bring update `number` to the engines."""
    global _newest
    _newest = number


def newest() -> int | None:
    """The number of the trainer's newest update, if the trainer is in this process."""
    return _newest
