"""Measures the seconds of work on a device, whose calls return before it is done."""

import statistics
import time
from collections.abc import Callable

import torch

ROUNDS = 5


def seconds(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Return the median seconds of `rounds`, after one to warm up. Each is from a device that has nothing left to do to
    the next such moment."""
    work()
    found = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return statistics.median(found)
