"""Seconds of work on a device, whose calls return before it is done."""

import statistics
import time
from collections.abc import Callable

import torch

ROUNDS = 5


def seconds(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """The median of `rounds`, from a device that has nothing left to do to the next such moment; after one to warm
    up."""
    work()
    found = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return statistics.median(found)
