"""Hooks for live runs of other frameworks, and readers of what such a run keeps in memory and writes to disk.

    from omni_rl import watch
    watch.step(rollout_logprobs=..., train_logprobs=..., mask=...)

posts a step of any trainer to the coordinator that OMNI_RL_URL names. `watch.Watcher` takes all settings as arguments.
`watch.update(model, number)` announces an update of the weights, where OMNI_RL_AGENT asks for the agent.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omni_rl.watch.default import default, step
    from omni_rl.watch.updates import update
    from omni_rl.watch.watcher import Watcher

__all__ = ["Watcher", "default", "step", "update"]

# A plug-in that some framework loads has to look at the environment before anything is imported for it.
_HOMES = {"Watcher": "watcher", "default": "default", "step": "default", "update": "updates"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"omni_rl.watch.{_HOMES[name]}"), name)
