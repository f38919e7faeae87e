"""What all drivers of Ray actors do alike."""

import contextlib
from typing import Any

import ray
from ray.exceptions import ActorHandleNotFoundError


def kill(actor: Any) -> None:
    """End an actor's process. One of an earlier connection to Ray ended with that connection."""
    if ray.is_initialized():
        with contextlib.suppress(ActorHandleNotFoundError):
            ray.kill(actor)
