"""Makes sure that a Ctrl-C does not get lost in a library."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Remember a Ctrl-C during the block, and yield a check that raises `KeyboardInterrupt` again if there was one.

    Python raises `KeyboardInterrupt` wherever the main thread is. numpy's `Generator.choice` swallows one in a hundred
    there, as does whatever runs in a callback of the interpreter; and `threading.Condition` may raise a `RuntimeError`
    in its place. So a block that was interrupted ends with `KeyboardInterrupt`, even if it would have ended normally,
    or with another error.

    In a thread other than the main one, or where Ctrl-C already has a handler that is not Python's own, the block runs
    unchanged and the check does nothing.
    """
    interrupted = False

    def check() -> None:
        if interrupted:
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield check
        return

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, hear)
    try:
        yield check
    except Exception as error:
        if interrupted:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)
    check()
