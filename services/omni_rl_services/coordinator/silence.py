"""Which runs' steps stop coming: told once when they do, and over with the next step or the run's end."""

import time
from collections.abc import Callable

from omni_rl.api.runs import Activity
from omni_rl.ledger.types import NewEvent
from omni_rl_services.coordinator.gate import Gate
from omni_rl_services.coordinator.roster import Roster
from omni_rl_services.coordinator.runs import Run
from omni_rl_services.coordinator.store import Store
from omni_rl_services.coordinator.telemetry import Telemetry

Clock = Callable[[], float]
CLOCK: Clock = time.time
"""Unix seconds: the ledger's, so that a run is as old after a restart as before."""


class Silence:
    """`after`: seconds without a step after which a run is silent that states none of its own."""

    def __init__(
        self, after: float, roster: Roster, store: Store, gate: Gate, telemetry: Telemetry, clock: Clock = CLOCK
    ) -> None:
        self._after = after
        self._roster = roster
        self._store = store
        self._gate = gate
        self._telemetry = telemetry
        self._clock = clock

    async def look(self) -> bool:
        """Tell of every live run whose steps stopped. Returns whether there was one."""
        told = False
        for run in self._roster:
            if self._is_overdue(run):
                async with run.turn:
                    if self._is_overdue(run):  # no step came while its turn was waited for
                        await self.enter(run, "silent")
                        told = True
        self._telemetry.silent(run.name for run in self._roster if run.activity == "silent")
        return told

    async def enter(self, run: Run, activity: Activity) -> None:
        """Change what a run does, durably. The caller holds its turn."""
        event = NewEvent("activity", {"before": run.activity, "after": activity}, run.name)
        state = {**run.state(run.drift, run.history), "activity": activity}
        await self._store.put_state(run.name, state, [event])
        run.activity = activity

    def _is_overdue(self, run: Run) -> bool:
        """While its gate is closed a run is not silent: its steps are held, and everyone is told so."""
        if run.activity != "live" or run.sealed is None or (run.body.gated and self._gate.closed):
            return False
        return self._clock() - run.sealed > (run.body.silent_after or self._after)
