"""Guards the boundary between a hook and the run that it is in: whatever goes wrong in the hook, the run goes on."""

import logging
from collections.abc import Callable
from typing import TypeVar

from omni_rl.errors import RunPausedError

T = TypeVar("T")
log = logging.getLogger("omni_rl.watch")
_said: set[str] = set()


def guarded(action: Callable[[], T], otherwise: str = "this step is not watched") -> T | None:
    """Return what the action returns; None, and a warning the first time, where it fails. `otherwise` says in words
    what is the case then.

    Raises:
        RunPausedError: The action raised it, for a watcher that is strict: the one thing that may stop a run.
    """
    try:
        return action()
    except RunPausedError:
        raise
    except Exception as error:  # the run is another's process: it must not end of what only watches it
        kind = f"{type(error).__name__}: {error}"
        if kind not in _said:
            _said.add(kind)
            log.warning("omni-rl: %s: %s", otherwise, kind, exc_info=True)
        return None
