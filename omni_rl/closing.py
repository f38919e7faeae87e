"""Defines the base of what is closed when a `with` block ends."""

from typing import Self


class Closing:
    """Something to `close`; as a context it is closed at the end, whether or not an error ended it."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
