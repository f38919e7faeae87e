"""Measures how fast something is on a machine that does other things as well."""

import statistics
import time
from collections.abc import Callable

ROUNDS = 5


def rate(tokens: int, work: Callable[[], object]) -> float:
    """Return tokens a second of processor time, which leaves out what else the machine does: the median, after a run to
    warm up."""
    work()
    seconds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return round(tokens / statistics.median(seconds), 1)
