"""Incidents of engines, the trainer and the cluster: opened when one has not answered for a while, ended when it
does."""

import time
from collections.abc import Callable, Iterator

from omni_rl.bridge.seam import ClusterState, ReplicaState
from omni_rl.consistency.limits import Severity
from omni_rl.ledger.types import IncidentEnd, NewIncident
from omni_rl.policies.settings import TRAINER
from omni_rl_services.coordinator.store import Store

DEAD_SECONDS = 10.0
"""Seconds for which a member is dead before an incident opens: a sync replaces an engine in less."""
AWAY_SECONDS = 60.0
"""Seconds for which the whole cluster is away before an incident opens: its bridge starts again by itself."""
CLUSTER = "cluster"
FALLEN = frozenset({"dead", "stopped", "quarantined"})


class Members:
    """What was seen of each member, and since when it is not well."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._since: dict[str, float] = {}
        self._open: dict[str, str | None] | None = None
        self._lost = False

    async def look(self, seen: ClusterState) -> bool:
        """Open incidents for what has not been well for long enough, end those of what is well again, and return
        whether there were any."""
        if self._open is None:
            self._open = {one.subject: one.run for one in await self._store.incidents(still_open=True, kind="engine")}
        sick = dict(_sick(seen))
        self._lost = self._lost or bool(seen.lost)
        now, told = self._clock(), False
        self._since = {name: self._since.get(name, now) for name in sick}
        for name, (incident, after) in sick.items():
            if name not in self._open and now - self._since[name] >= after:
                await self._store.see_incident(seen.run, incident)
                self._open[name] = seen.run
                told = True
        for name in sorted(self._open.keys() - sick.keys()):
            if not seen.connected and name != CLUSTER:
                continue  # what cannot be seen is not known to be well
            # A cluster that never answered before has no run that anybody knew of.
            await self._store.end_incidents(self._open[name], IncidentEnd("engine", self._well(name), name))
            del self._open[name]
            told = True
        return told

    def _well(self, name: str) -> str:
        """Return what ended the incident of a member that is well again."""
        if name != TRAINER or not self._lost:
            return f"{name} answers again"
        self._lost = False
        return "another trainer answers, with the weights of the checkpoint"


def _sick(seen: ClusterState) -> Iterator[tuple[str, tuple[NewIncident, float]]]:
    if seen.lost:
        # Nothing brings it back: this is told at once, however soon there is another.
        headline = f"A trainer ended, and with it what it learnt since its last saved state: {seen.lost}."
        yield TRAINER, (NewIncident(int(Severity.PAUSE), headline, kind="engine", subject=TRAINER), 0.0)
        return
    if not seen.connected:
        headline = f"The Ray cluster does not answer: {seen.reason or 'it does not say why'}."
        yield CLUSTER, (NewIncident(int(Severity.PAUSE), headline, kind="engine", subject=CLUSTER), AWAY_SECONDS)
        return
    for member in seen.members:
        if member.state in FALLEN:
            incident = NewIncident(int(Severity.PAUSE), f"{_told(member)}.", kind="engine", subject=member.name)
            yield member.name, (incident, DEAD_SECONDS)


def fallen(seen: ClusterState) -> str:
    """Return who does not do its part, and why, and whether the weights are still there; "" if all is well."""
    told = [_told(member) for member in seen.members if member.state in FALLEN]
    return "; ".join([*told, seen.slabs] if seen.slabs else told)


def _told(member: ReplicaState) -> str:
    return f"{member.name} is {member.state}" + (f": {member.detail}" if member.detail else "")
