"""Values that are computed once for an object."""

import threading

from omni_rl.once import once


class Slow:
    """Whose value takes until `may_end`."""

    def __init__(self) -> None:
        self.began, self.may_end, self.count = threading.Event(), threading.Event(), 0

    @once
    def value(self) -> int:
        """Documented."""
        self.count += 1
        self.began.set()
        assert self.may_end.wait(30)
        return self.count


def test_a_value_is_computed_once_and_documented() -> None:
    one = Slow()
    one.may_end.set()
    assert (one.value, one.value, one.count) == (1, 1, 1)
    assert Slow.value.__doc__ == "Documented."


def test_no_object_waits_for_another_ones_value() -> None:
    slow, quick = Slow(), Slow()
    thread = threading.Thread(target=lambda: slow.value)
    thread.start()
    assert slow.began.wait(30)
    quick.may_end.set()
    assert quick.value == 1  # with a lock of the class it would not come before the slow one's end
    assert thread.is_alive()
    slow.may_end.set()
    thread.join(30)
    assert not thread.is_alive()
