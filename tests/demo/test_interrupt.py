"""Ctrl-C ends what it meets, whoever swallows the exception."""

import contextlib
import signal
import threading
from collections.abc import Callable

import pytest

from omni_rl.demo.interrupt import interruptible

Check = Callable[[], None]


def ctrl_c(check: Check = lambda: None) -> None:
    signal.raise_signal(signal.SIGINT)


def swallowed(check: Check) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        ctrl_c()


def swallowed_before_a_check(check: Check) -> None:
    check()
    swallowed(check)
    check()
    raise AssertionError("the block went on")


def became_another(check: Check) -> None:
    swallowed(check)
    raise RuntimeError("release unlocked lock")  # what threading.Condition raises then


def wrong(check: Check) -> None:
    check()
    raise RuntimeError("as it was")


def run(body: Callable[[Check], None]) -> None:
    with interruptible() as check:
        body(check)


@pytest.mark.parametrize("body", [ctrl_c, swallowed, swallowed_before_a_check, became_another])
def test_an_interrupted_block_ends_as_one(body: Callable[[Check], None]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(body)
    assert signal.getsignal(signal.SIGINT) is before


def test_without_one_nothing_changes() -> None:
    before = signal.getsignal(signal.SIGINT)
    run(lambda check: check())
    with pytest.raises(RuntimeError, match="as it was"):
        run(wrong)
    assert signal.getsignal(signal.SIGINT) is before


def test_an_ignored_one_stays_ignored() -> None:
    """A shell's background job ignores Ctrl-C, which is meant for another."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run(ctrl_c)
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_is_left_alone() -> None:
    ended: list[bool] = []

    def beside() -> None:
        run(lambda check: check())
        ended.append(True)

    thread = threading.Thread(target=beside)
    thread.start()
    thread.join()
    assert ended
