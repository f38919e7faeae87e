"""Finds runs whose steps stop coming: an incident opens once when they do, and ends with the next step or the run's
end."""

import time
from collections.abc import Callable
from datetime import timedelta

from omni_rl.api.runs import Activity
from omni_rl.consistency.limits import Severity
from omni_rl.ledger.types import IncidentEnd, NewEvent, NewIncident, StepKey
from omni_rl_services.coordinator.gate import Gate
from omni_rl_services.coordinator.roster import Roster
from omni_rl_services.coordinator.runs import LiveRun
from omni_rl_services.coordinator.store import Store

Clock = Callable[[], float]
LOOKED_AT = 100
"""The most runs at one look; those that are overdue longest come first."""
CLOCK: Clock = time.time
"""Unix seconds. The ledger's times are of this clock, so that a run is as old after a restart as before."""
MONOTONIC: Clock = time.monotonic
"""Seconds that pass evenly, however the other clock is set."""
SET_SECONDS = 5.0
"""Seconds by which the two clocks differ more between two looks if somebody set one, or the machine was asleep."""


class Silence:
    """Watches all runs of the ledger, in memory or not."""

    def __init__(
        self, roster: Roster, store: Store, gate: Gate, clock: Clock = CLOCK, monotonic: Clock = MONOTONIC
    ) -> None:
        self._roster = roster
        self._store = store
        self._gate = gate
        self._clock = clock
        self._monotonic = monotonic
        self._apart = clock() - monotonic()
        self._set: float | None = None
        self._held: float | None = None

    async def look(self) -> bool:
        """Make every live run silent whose steps stopped, and return whether there was one."""
        told = False
        self._see_clocks()
        if self._gate.closed:
            self._held = self._monotonic()
        for name in await self._store.overdue(self._clock(), LOOKED_AT):
            run = await self._roster.one(name)
            if self._is_overdue(run):
                async with run.turn:
                    if self._is_overdue(run):  # no step came while this waited for `turn`
                        await self.enter(run, "silent")
                        told = True
        return told

    async def enter(self, run: LiveRun, activity: Activity) -> None:
        """Change what a run does, durably. The caller holds the run's `turn`."""
        event = NewEvent("activity", {"before": run.activity, "after": activity}, run.name)
        seen = (self._of(run),) if activity == "silent" else ()
        over = () if seen else (IncidentEnd("silence", f"the run is {activity}"),)
        key = None if run.latest is None else StepKey(run.name, *run.latest)
        await self._store.put_state(
            run.name, run.after(activity=activity, events=(event,), seen=seen, over=over, key=key)
        )
        run.activity = activity

    def _of(self, run: LiveRun) -> NewIncident:
        after = timedelta(seconds=run.silent_after)
        headline = f"No step came for longer than {after}: the run ended without saying so, hangs, or posts no more."
        if run.line.step is not None:
            headline = f"Step {run.line.step} was the last. {headline}"
        return NewIncident(int(Severity.MASK), headline, kind="silence", good=run.line.good)

    def _is_overdue(self, run: LiveRun) -> bool:
        """Return whether a live run has been without a step for too long. A run whose gate is closed is not silent: its
        steps are held, and everyone is told so. It has its full time once the gate is open again."""
        if run.activity != "live" or run.sealed is None or (run.body.gated and self._gate.closed):
            return False
        for since in (self._set, self._held if run.body.gated else None):
            if since is not None and self._monotonic() - since <= run.silent_after:
                return False
        return self._clock() - run.sealed > run.silent_after

    def _see_clocks(self) -> None:
        """Notice that the clock was set, or that the machine slept. The clock then does not tell how long nothing came,
        so every run gets its full time again."""
        apart = self._clock() - self._monotonic()
        if abs(apart - self._apart) > SET_SECONDS:
            self._set = self._monotonic()
        self._apart = apart
