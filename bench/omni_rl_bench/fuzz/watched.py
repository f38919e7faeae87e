"""Runs a coordinator that measures from within how long its event loop is blocked.

`python -m omni_rl_bench.fuzz.watched SETTINGS.json`
"""

import asyncio
import json
import logging
import math
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Self

from omni_rl_services.coordinator.server import serve
from omni_rl_services.coordinator.settings import CoordinatorSettings

from omni_rl.bridge.seam import Bridge
from omni_rl.errors import OmniRLError

BLOCKS, STACKS = "blocks.jsonl", "stacks"
TICK = 0.005
NOTED = 0.020
"""The seconds below which a block is not written down."""
STACKS_AFTER = 0.080
"""How many seconds late the loop is when the stacks of all threads are written down: what blocks it is among them."""
LOOK = 0.020
"""The seconds between two checks whether the loop is late."""


def serve_watched(settings: Path, bridge: Bridge | None = None) -> None:
    """Serve until asked to end; blocks go to a file beside `settings`, a line each, and stacks to another.

    A block is how much later than it asked for a task of the loop wakes, or the processor time that this process used
    meanwhile if that is less. Lateness alone would count other processes on a machine that they share: while they run,
    this one uses no processor. Processor time of the loop's thread alone would leave out what another thread does
    inside C without releasing the GIL, which blocks the loop as well.
    """
    tasks: list[asyncio.Task[None]] = []
    chosen = CoordinatorSettings(**json.loads(settings.read_text()))
    serve(
        chosen,
        bridge,
        on_start=lambda address: tasks.append(asyncio.get_running_loop().create_task(_watch(settings.parent))),
    )


async def _watch(folder: Path) -> None:
    with (folder / BLOCKS).open("w", buffering=1) as file, _Stacks(folder / STACKS) as stacks:
        while True:
            began, used = time.perf_counter(), time.process_time()
            stacks.due = time.monotonic() + STACKS_AFTER
            await asyncio.sleep(TICK)
            late = time.perf_counter() - began - TICK
            block = min(late, time.process_time() - used)
            if block > NOTED:
                file.write(json.dumps({"at": time.time(), "ms": 1e3 * block, "late_ms": 1e3 * late}) + "\n")


class _Stacks:
    """Writes down where every thread is when the loop is late, once for each time that it is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.due = math.inf
        """The time when the loop counts as late, by the monotonic clock."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        with self._path.open("w", buffering=1) as file:
            while not self._ended.wait(LOOK):
                if time.monotonic() > self.due:
                    self.due = math.inf
                    for frame in sys._current_frames().values():
                        file.write("".join(traceback.format_stack(frame)) + "\n")
                    file.write(f"--- {time.time()}\n")


def main(arguments: list[str], bridge: Bridge | None = None) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        serve_watched(Path(arguments[0]), bridge)
    except OmniRLError as error:
        sys.stderr.write(f"error [{error.code}]: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
