"""What dies during a soak, and how long the service takes to be whole again."""

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from omni_rl.bench.soak.load import PATIENT, Load
from omni_rl.bench.soak.measure import processes
from omni_rl.client.blocking import Client
from omni_rl.errors import OmniRLError
from omni_rl.processes import wait_until_gone

EVERY = (30.0, 75.0)
"""Seconds between two deaths."""
WHOLE_SECONDS = 240.0
LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Death:
    """`at`: seconds from the beginning; `whole_after`: until everything answered again, None: it never did."""

    what: str
    at: float
    whole_after: float | None


class Killer:
    """Kills at random, until `load` has ended."""

    def __init__(self, load: Load, seed: int) -> None:
        self._load = load
        self._service = load.service
        self._random = random.Random(seed)  # noqa: S311, what dies is no secret
        self.deaths: list[Death] = []
        self._began = time.monotonic()

    def run(self) -> None:
        kinds: dict[str, Callable[[Client], None]] = {
            "coordinator": lambda client: self._kill("coordinator"),
            "bridge": lambda client: self._kill("bridge"),
            "engine": lambda client: self._kill("engine"),
            "job": self._stop_job,
        }
        waiting: list[str] = []
        with self._service.client(PATIENT) as client:
            while not self._load.ended.wait(self._random.uniform(*EVERY)):
                # Every kind is as often: a soak of a few minutes has met each.
                if not waiting:
                    waiting = self._random.sample(list(kinds), len(kinds))
                what = waiting.pop()
                began = time.monotonic()
                with self._load.calls.dead():
                    kinds[what](client)
                    whole = self._whole(client)
                ended = time.monotonic() - began if whole else None
                self.deaths.append(
                    Death(what, round(began - self._began, 1), None if ended is None else round(ended, 1))
                )

    def _kill(self, role: str) -> None:
        found = processes(self._service.run)[role]
        if not found:
            return
        pid = self._random.choice(found)
        os.kill(pid, signal.SIGKILL)
        wait_until_gone([pid])
        if role == "coordinator":
            self._service.command("up")

    def _stop_job(self, client: Client) -> None:
        if self._load.jobs:
            self._load.stopped.add(self._load.jobs[-1])
            client.stop_job(self._load.jobs[-1])

    def _whole(self, client: Client) -> bool:
        """Whether everything answers again, engines with the served weights behind an open gate. A sync brings in the
        successors of engines that died, as any job's next step would."""
        deadline = time.monotonic() + WHOLE_SECONDS
        while time.monotonic() < deadline:
            try:
                client.sync()
                state = client.state()
                if client.ready().ready and state.cluster.connected and state.gate.gate == "open":
                    return True
            except OmniRLError:
                pass  # not yet
            time.sleep(LOOK_SECONDS)
        return False

    def figures(self) -> dict[str, Any]:
        return {"deaths": [asdict(death) for death in self.deaths]}
