"""Restarts a service's coordinator and head, which have no other supervisor where `omni-rl up` started them."""

import os
import signal

from omni_rl.processes import wait_until_gone
from omni_rl.service.state import Process, ServiceState
from omni_rl_bench.own_service import OwnService
from omni_rl_bench.result import BenchmarkError
from omni_rl_bench.soak.ground import Clock


class Supervised:
    """Starts again whichever of the two is gone; the coordinator has the soak's `clock`, and Ray the machine's."""

    def __init__(self, service: OwnService, clock: Clock) -> None:
        self._service = service
        self._clock = clock

    def begin(self) -> None:
        """Give the coordinator the clock, by starting it again."""
        _, coordinator = self._processes()
        os.kill(coordinator.pid, signal.SIGKILL)
        wait_until_gone([coordinator.pid])
        self.look()

    def look(self) -> None:
        """Call `omni-rl up` if one is gone; returns when all answers."""
        head, coordinator = self._processes()
        if not head.lives:
            # The head is started by itself, so that it does not get the coordinator's clock.
            self._service.command("up")
        elif not coordinator.lives:
            self._service.command("up", environment=self._clock.environment)

    def _processes(self) -> tuple[Process, Process]:
        state = ServiceState.read(self._service.directory)
        if state is None or state.head is None or state.coordinator is None:
            raise BenchmarkError("the service was ended by somebody else")
        return state.head, state.coordinator
