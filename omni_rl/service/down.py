"""Ends the service, every process of it, and the memory that it held."""

import contextlib
import os
import shutil
import signal
from pathlib import Path

from omni_rl.errors import ServiceError
from omni_rl.processes import wait_until_gone
from omni_rl.service.state import ServiceState, marked
from omni_rl.sync.ownership import PREFIX, SHARED_MEMORY


def down(directory: Path) -> int:
    """End the service of `directory`, and return how many processes were ended; 0 if none ran. Ledger, media, tokens
    and logs stay.

    Raises `ServiceError` if a process does not end.
    """
    directory = directory.resolve()
    state = ServiceState.read(directory)
    if state is None:
        return 0
    count = len(marked(state.name))
    # The coordinator ends in order: it has a ledger to close, and would start its bridge again. Ray's head would wait
    # for its actors longer than we wait for it, and nothing of it is kept.
    if state.coordinator is not None and state.coordinator.lives:
        os.kill(state.coordinator.pid, signal.SIGTERM)
        wait_until_gone([state.coordinator.pid])
    for _ in range(3):  # a process that is being started while others end is found the next time
        left = marked(state.name)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until_gone(left)
    if left := marked(state.name):
        raise ServiceError(f"processes {left} of the service do not end; end them, and run omni-rl down again")
    shutil.rmtree(SHARED_MEMORY / f"{PREFIX}{state.name}", ignore_errors=True)
    for beside in SHARED_MEMORY.glob(f"{PREFIX}{state.name}-on-*"):  # of Ray nodes of this machine, each a host
        shutil.rmtree(beside, ignore_errors=True)
    # Its parent is ours too, and was made by mkdtemp; a service of an older version has none around it.
    around = state.ray_directory.parent
    shutil.rmtree(around if around.name.startswith(PREFIX) else state.ray_directory, ignore_errors=True)
    (directory / "state.json").unlink()
    return count
