"""What other processes use of omni-rl: the coordinator's API, and a way to hand weights to a run."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omni_rl.client.aio import AsyncClient
    from omni_rl.client.blocking import Client
    from omni_rl.client.weights import Published, publish

__all__ = ["AsyncClient", "Client", "Published", "publish"]

# Weights need torch, which a program that only talks to the coordinator may not have; the API needs httpx, which one
# that only publishes may not have.
_HOMES = {"AsyncClient": "aio", "Client": "blocking", "Published": "weights", "publish": "weights"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"omni_rl.client.{_HOMES[name]}"), name)
