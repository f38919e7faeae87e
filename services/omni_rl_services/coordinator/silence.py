"""Which runs' steps stop coming: told once when they do, and over with the next step or the run's end."""

import time
from collections.abc import Callable
from datetime import timedelta

from omni_rl.api.runs import Activity
from omni_rl.consistency.limits import Severity
from omni_rl.ledger.types import IncidentEnd, NewEvent, NewIncident, StepKey
from omni_rl_services.coordinator.gate import Gate
from omni_rl_services.coordinator.roster import Roster
from omni_rl_services.coordinator.runs import Run
from omni_rl_services.coordinator.store import Store

Clock = Callable[[], float]
LOOKED_AT = 100
"""Runs at one look; those that are overdue longest come first."""
CLOCK: Clock = time.time
"""Unix seconds: the ledger's, so that a run is as old after a restart as before."""


class Silence:
    """Of all runs of the ledger, in memory or not."""

    def __init__(self, roster: Roster, store: Store, gate: Gate, clock: Clock = CLOCK) -> None:
        self._roster = roster
        self._store = store
        self._gate = gate
        self._clock = clock

    async def look(self) -> bool:
        """Tell of every live run whose steps stopped. Returns whether there was one."""
        told = False
        for name in await self._store.overdue(self._clock(), LOOKED_AT):
            run = await self._roster.one(name)
            if self._is_overdue(run):
                async with run.turn:
                    if self._is_overdue(run):  # no step came while its turn was waited for
                        await self.enter(run, "silent")
                        told = True
        return told

    async def enter(self, run: Run, activity: Activity) -> None:
        """Change what a run does, durably. The caller holds its turn."""
        event = NewEvent("activity", {"before": run.activity, "after": activity}, run.name)
        seen = (self._of(run),) if activity == "silent" else ()
        over = () if seen else (IncidentEnd("silence", f"the run is {activity}"),)
        key = None if run.latest is None else StepKey(run.name, *run.latest)
        await self._store.put_state(
            run.name, run.after(activity=activity, events=(event,), seen=seen, over=over, key=key)
        )
        run.activity = activity

    def _of(self, run: Run) -> NewIncident:
        after = timedelta(seconds=run.silent_after)
        headline = f"No step came for longer than {after}: the run ended without saying so, hangs, or posts no more."
        if run.line.step is not None:
            headline = f"Step {run.line.step} was the last. {headline}"
        return NewIncident(int(Severity.MASK), headline, kind="silence", good=run.line.good)

    def _is_overdue(self, run: Run) -> bool:
        """While its gate is closed a run is not silent: its steps are held, and everyone is told so."""
        if run.activity != "live" or run.sealed is None or (run.body.gated and self._gate.closed):
            return False
        return self._clock() - run.sealed > run.silent_after
