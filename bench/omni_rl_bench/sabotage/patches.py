"""Puts faults into a live run at named patch points, and takes them out again.

Everything here runs in the process of an engine or of a trainer's rank, on its real objects.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from omni_rl_bench.sabotage.fault import Put

_TAKE_OUT: list[Callable[[], object]] = []
"""The calls that undo this process's patches, the newest last."""


def replace(owner: Any, name: str, by: Callable[[Any], Any]) -> None:
    """Put `by(original)` in place of an attribute until `take_out`."""
    original = getattr(owner, name)
    setattr(owner, name, by(original))
    _TAKE_OUT.append(lambda: setattr(owner, name, original))


def once(owner: Any, name: str, by: Callable[..., Any]) -> None:
    """Call `by(original, ...)` in place of a method, the next time only."""

    def instead(original: Any) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            setattr(owner, name, original)
            return by(original, *arguments, **named)

        return call

    replace(owner, name, instead)


def hook(module: torch.nn.Module, change: Callable[[Any], Any]) -> None:
    """Change a module's output."""
    handle = module.register_forward_hook(lambda _, given, found: change(found))
    _TAKE_OUT.append(handle.remove)


def hook_input(module: torch.nn.Module, change: Callable[[Any], Any]) -> None:
    """Change a module's first argument."""
    handle = module.register_forward_pre_hook(lambda _, given: (change(given[0]), *given[1:]))
    _TAKE_OUT.append(handle.remove)


def take_out(owner: Any) -> None:
    """Undo everything in this process; `owner` is the engine or rank, which is not needed for it."""
    while _TAKE_OUT:
        _TAKE_OUT.pop()()


def in_worker(put: Put) -> Put:
    """Return a fault of the worker that holds a model as a fault of its engine."""
    return partial(_in_worker, put)


def _in_worker(put: Put, engine: Any, seed: int) -> None:
    engine.llm_engine.collective_rpc(put, args=(seed,))


def parameter(worker: Any, name: str) -> torch.Tensor:
    """Return a worker's parameter by its engine's own name."""
    found: torch.Tensor = worker.get_model().get_parameter(name).data
    return found
