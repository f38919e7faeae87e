"""A Ctrl-C that cannot get lost in a library."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Hold on to a Ctrl-C of the block; what this yields raises `KeyboardInterrupt` again if there was one.

    Python raises it wherever the main thread is. numpy's `Generator.choice` swallows one in a hundred there, as does
    whatever runs in a callback of the interpreter; and `threading.Condition` may raise a `RuntimeError` in its place.
    So a block that was interrupted ends with `KeyboardInterrupt`, however else it would have ended.

    Does nothing in another thread than the main one, or where somebody else has said what Ctrl-C does.
    """
    interrupted = threading.Event()

    def check() -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield check
        return

    def hear(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, hear)
    try:
        yield check
    except Exception as error:
        if interrupted.is_set():
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)
    check()
