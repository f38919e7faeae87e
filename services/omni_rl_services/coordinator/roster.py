"""The runs that are in memory: the newest, those in use, and those where something is under way. The ledger has all
runs."""

import heapq
from collections import OrderedDict
from collections.abc import Iterator

from omni_rl.api.runs import MAX_LAG, RunBody
from omni_rl.errors import NotFoundError
from omni_rl.ledger.types import Run
from omni_rl_services.coordinator.lines import Line
from omni_rl_services.coordinator.runs import LiveRun
from omni_rl_services.coordinator.store import Store

KEPT = 256
"""The number of runs in memory, some kilobytes each. There are more only where more of them are not at rest."""
NEWEST = 100
"""The number of newest runs that stay in memory: every state lists them."""


class Roster:
    """One object for each run, whose `turn` its writers share: a run that is not at rest never leaves memory."""

    def __init__(self, store: Store, settle: int, silent_after: float) -> None:
        self._store = store
        self._settle = settle
        self._silent_after = silent_after
        self._runs: OrderedDict[str, LiveRun] = OrderedDict()

    def __iter__(self) -> Iterator[LiveRun]:
        """Iterate over the runs in memory."""
        return iter(list(self._runs.values()))

    async def open(self) -> None:
        for row in await self._store.to_remember(KEPT):
            self.add(row)

    def add(self, row: Run) -> LiveRun:
        """Return a run's object: the one in memory, or else one made from the ledger's row."""
        run = self._runs.get(row.run)
        if run is None:
            run = self._runs[row.run] = self.read(row)
        self._runs.move_to_end(run.name)
        self._trim(run)
        return run

    async def one(self, name: str) -> LiveRun:
        """Return a run. Raises `NotFoundError`."""
        run = self._runs.get(name)
        if run is not None:
            self._runs.move_to_end(name)
            return run
        try:
            row = await self._store.run(name)
        except NotFoundError:
            raise NotFoundError(f"there is no run {name!r}; make it with POST /v1/runs") from None
        return self.add(row)

    def newest(self) -> list[LiveRun]:
        """Return the runs that stay in memory, the newest first."""
        return heapq.nlargest(NEWEST, self._runs.values(), key=lambda run: run.created)

    def read(self, row: Run) -> LiveRun:
        """Return a run as the ledger has it, for reading alone: it is not put into memory."""
        return read_run(row, self._settle, self._silent_after)

    def _trim(self, used: LiveRun) -> None:
        """Drop the runs that were used longest ago, but not `used`, which is about to be."""
        if len(self._runs) <= KEPT:
            return
        stay = {run.name for run in self.newest()} | {used.name}
        for run in self:
            if len(self._runs) <= KEPT:
                return
            if run.at_rest and run.name not in stay:
                del self._runs[run.name]


def read_run(row: Run, settle: int, silent_after: float) -> LiveRun:
    """Return a run as the ledger has it."""
    config = dict(row.config)
    if (lag := config.get("lag")) is not None:  # older versions took any
        config["lag"] = min(lag, MAX_LAG)
    run = LiveRun.of(RunBody.model_validate(config), row.created, settle, silent_after)
    if row.latest is not None:  # older ledgers have no line in the state
        run.latest, run.activity = (row.latest.attempt, row.latest.step), "live"
        run.line = Line(row.latest.attempt, row.latest.step, row.sealed)
    if row.state is not None:
        run.take_up(row.state)
    return run
