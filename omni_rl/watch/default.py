"""The watcher of a process that did not make one."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Unpack

from omni_rl.watch.table import StepValues
from omni_rl.watch.watcher import Watcher


@cache
def default() -> Watcher:
    """Return the process's own watcher, which is made at the first call from the environment alone."""
    return Watcher()


def step(
    *,
    step: int | None = None,
    training: Mapping[str, object] | None = None,
    pictures: Sequence[Sequence[Any] | None] | None = None,
    picture_token: int | None = None,
    **values: Unpack[StepValues],
) -> int:
    """Post one step of this rank to the coordinator that OMNI_RL_URL names; see `Watcher.step`."""
    return default().step(step=step, training=training, pictures=pictures, picture_token=picture_token, **values)
