"""Engines, the trainer and the cluster that do not answer: told when they have not for a while, over when they do."""

import time
from collections.abc import Callable, Iterator

from omni_rl.consistency.limits import Severity
from omni_rl.ledger.types import IncidentEnd, NewIncident
from omni_rl_services.coordinator.bridge import ClusterState
from omni_rl_services.coordinator.store import Store

DEAD_SECONDS = 10.0
"""How long a member is dead before that is told: a sync replaces an engine in less."""
AWAY_SECONDS = 60.0
"""The same of the whole cluster, whose bridge starts again by itself."""
CLUSTER = "cluster"
FALLEN = frozenset({"dead", "quarantined"})


class Members:
    """What was seen of each, and since when it is not well."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._since: dict[str, float] = {}
        self._open: set[str] | None = None

    async def look(self, seen: ClusterState) -> bool:
        """Tell of what has not been well for long enough, and of what is well again. Returns whether anything was."""
        if self._open is None:
            self._open = {one.subject for one in await self._store.incidents(still_open=True, kind="engine")}
        sick = dict(_sick(seen))
        now, told = self._clock(), False
        self._since = {name: self._since.get(name, now) for name in sick}
        for name, (incident, after) in sick.items():
            if name not in self._open and now - self._since[name] >= after:
                await self._store.see_incident(seen.run, incident)
                self._open.add(name)
                told = True
        for name in sorted(self._open - sick.keys()):
            if not seen.connected and name != CLUSTER:
                continue  # what cannot be seen is not known to be well
            await self._store.end_incidents(seen.run, IncidentEnd("engine", f"{name} answers again", name))
            self._open.discard(name)
            told = True
        return told


def _sick(seen: ClusterState) -> Iterator[tuple[str, tuple[NewIncident, float]]]:
    if not seen.connected:
        headline = f"The Ray cluster does not answer: {seen.reason or 'it does not say why'}."
        yield CLUSTER, (NewIncident(int(Severity.PAUSE), headline, kind="engine", subject=CLUSTER), AWAY_SECONDS)
        return
    for member in seen.members:
        if member.state in FALLEN:
            detail = f": {member.detail}" if member.detail else ""
            headline = f"{member.name} is {member.state}{detail}."
            incident = NewIncident(int(Severity.PAUSE), headline, kind="engine", subject=member.name)
            yield member.name, (incident, DEAD_SECONDS)
