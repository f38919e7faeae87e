"""Reads and moves the requests in vLLM's scheduler, which has no interface for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm.v1.core.sched.request_queue import create_request_queue


def _scheduler(engine: Any) -> Any:
    return engine.engine_core.engine_core.scheduler


def computed_tokens(engine: Any, request: str) -> int:
    """Return how many tokens of a request (vLLM's own id) have a state in the engine."""
    return int(_scheduler(engine).requests[request].num_computed_tokens)


@contextmanager
def alone(engine: Any) -> Iterator[None]:
    """Set all requests under way aside, with their state, so that those added within the context run by themselves.

    The model runner is prepared for that: a request that is not in a step keeps its state and comes back later.
    """
    scheduler = _scheduler(engine)
    running, waiting = scheduler.running, scheduler.waiting
    scheduler.running, scheduler.waiting = [], create_request_queue(scheduler.policy)
    try:
        yield
    finally:
        scheduler.running, scheduler.waiting = running, waiting
