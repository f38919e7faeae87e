"""Incidents of engines, the trainer and the cluster: opened when one has not answered for a while, ended when it
does. A trainer that was replaced is one too, until a person ends it."""

import asyncio
import time
from collections.abc import Callable, Iterator

from omni_rl.bridge.seam import ClusterState, ReplicaState
from omni_rl.consistency.limits import Severity
from omni_rl.ledger.types import Incident, IncidentEnd, NewIncident
from omni_rl_services.coordinator.store import Store

DEAD_SECONDS = 10.0
"""Seconds for which a member is dead before an incident opens: a sync replaces an engine in less."""
AWAY_SECONDS = 60.0
"""Seconds for which the whole cluster is away before an incident opens: its bridge starts again by itself."""
CLUSTER = "cluster"
REPLACED = "trainer replaced"
"""The subject of the incident of a trainer that was replaced: not the trainer's own, which ends when it answers."""
FALLEN = frozenset({"dead", "stopped", "quarantined"})


class Members:
    """What was seen of each member, and since when it is not well."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._since: dict[str, float] = {}
        self._open: dict[str, str | None] | None = None
        self._trainer = ""
        self._turn = asyncio.Lock()

    async def look(self, seen: ClusterState) -> bool:
        """Open incidents for what has not been well for long enough, end those of what is well again, and return
        whether there were any."""
        # Looks come from the watch and from the end of every sync: two at once would end the same incident.
        async with self._turn:
            return await self._look(seen)

    async def forget(self, ended: Incident) -> None:
        """Forget an incident that a person ended: its subject has to be unwell for as long again before another
        opens."""
        if ended.kind != "engine":
            return
        async with self._turn:
            self._since.pop(ended.subject, None)
            if self._open is not None:
                self._open.pop(ended.subject, None)

    async def _look(self, seen: ClusterState) -> bool:
        if self._open is None:
            self._open = {one.subject: one.run for one in await self._store.incidents(still_open=True, kind="engine")}
        sick = dict(_sick(seen))
        now, told = self._clock(), await self._look_at_trainer(seen)
        self._since = {name: self._since.get(name, now) for name in sick}
        for name, (incident, after) in sick.items():
            if name not in self._open and now - self._since[name] >= after:
                await self._store.see_incident(seen.run, incident)
                self._open[name] = seen.run
                told = True
        for name in sorted(self._open.keys() - sick.keys() - {REPLACED}):
            if not seen.connected and name != CLUSTER:
                continue  # what cannot be seen is not known to be well
            # A cluster that never answered before has no run that anybody knew of.
            await self._store.end_incidents(self._open[name], IncidentEnd("engine", f"{name} answers again", name))
            self._open.pop(name, None)
            told = True
        return told

    async def _look_at_trainer(self, seen: ClusterState) -> bool:
        """Open an incident if there is another trainer than before, and return whether there is. It stays open until a
        person ends it: nothing brings back what the trainer before had learnt, however soon another took its place."""
        after = seen.trainer or self._trainer
        if self._trainer in ("", after):
            self._trainer = after
            return False
        headline = (
            f"A trainer ({self._trainer}) ended, and with it what it learnt since its last saved state. Another took "
            "its place, with the weights of the checkpoint."
        )
        await self._store.see_incident(
            seen.run, NewIncident(int(Severity.PAUSE), headline, kind="engine", subject=REPLACED)
        )
        self._trainer = after  # only now: if the incident was not written, the next look tries again
        return True


def _sick(seen: ClusterState) -> Iterator[tuple[str, tuple[NewIncident, float]]]:
    if not seen.connected:
        headline = f"The Ray cluster does not answer: {seen.reason or 'it does not say why'}."
        yield CLUSTER, (NewIncident(int(Severity.PAUSE), headline, kind="engine", subject=CLUSTER), AWAY_SECONDS)
        return
    for member in seen.members:
        if member.state in FALLEN:
            incident = NewIncident(int(Severity.PAUSE), f"{_told(member)}.", kind="engine", subject=member.name)
            yield member.name, (incident, DEAD_SECONDS)


def fallen(seen: ClusterState) -> str:
    """Return why the cluster does not answer, or else who does not do its part, and why, and whether the weights are
    still there; "" if all is well."""
    if not seen.connected:
        return seen.reason or "the cluster does not answer"
    told = [_told(member) for member in seen.members if member.state in FALLEN]
    return "; ".join([*told, seen.slabs] if seen.slabs else told)


def _told(member: ReplicaState) -> str:
    return f"{member.name} is {member.state}" + (f": {member.detail}" if member.detail else "")
