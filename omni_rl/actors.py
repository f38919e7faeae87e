"""What all drivers of Ray actors do alike."""

import contextlib
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import ActorHandleNotFoundError

from omni_rl.processes import EXIT_TIMEOUT

NAME_PAUSE = 0.1
"""Seconds between two tries to take the name of an actor that ended."""


def place(actor: Any, *arguments: Any) -> Any:
    """Start an actor with `arguments`. Ray lets go of a dead one's name a moment after its process is gone.

    Raises `ValueError` if a living one has the name.
    """
    deadline = time.monotonic() + EXIT_TIMEOUT
    while True:
        try:
            return actor.remote(*arguments)
        except ValueError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(NAME_PAUSE)


def share(cpus: float, resources: Mapping[str, float]) -> dict[str, Any]:
    """The options that set `resources`, by Ray's names, aside for an actor; GPU is the one with devices behind it."""
    others = {name: amount for name, amount in resources.items() if name != "GPU"}
    return {"num_cpus": cpus, "num_gpus": resources.get("GPU", 0), "resources": others}


def clear(name: str, namespace: str) -> None:
    """End the actor of that name, if there is one: one that cannot be used keeps it from a successor."""
    with contextlib.suppress(ValueError):
        kill(ray.get_actor(name, namespace))


def kill(actor: Any) -> None:
    """End an actor's process. One of an earlier connection to Ray ended with that connection."""
    if ray.is_initialized():
        with contextlib.suppress(ActorHandleNotFoundError):
            ray.kill(actor)
