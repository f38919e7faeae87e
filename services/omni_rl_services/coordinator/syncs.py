"""Weight syncs: one at a time, one operation for each key, followed phase by phase. The bridge carries them out and
writes the journal, which is part of the ledger; this module knows who asked for which sync, and who waits for it."""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from omni_rl.api.syncs import SyncAnswer, SyncBody, SyncPhase
from omni_rl.bridge.seam import Bridge, SyncRequest
from omni_rl.consistency.limits import Severity
from omni_rl.counting import counted
from omni_rl.errors import (
    IdempotencyError,
    InvalidRequestError,
    JournalError,
    LedgerError,
    NotFoundError,
    OmniRLError,
    RayUnavailableError,
)
from omni_rl.ledger.types import IncidentEnd, NewIncident
from omni_rl.sync.result import SyncResult
from omni_rl.sync.states import Phase, SyncEvent
from omni_rl_services.coordinator.events import Events
from omni_rl_services.coordinator.problems import SyncIsRunningError
from omni_rl_services.coordinator.settings import CoordinatorSettings
from omni_rl_services.coordinator.store import Store
from omni_rl_services.coordinator.telemetry import Telemetry
from omni_rl_services.coordinator.views import sync_answer, told

logger = logging.getLogger("omni_rl.coordinator")
UNKNOWN = (RayUnavailableError, LedgerError, JournalError)
"""The errors after which only the ledger knows whether a sync began, and what came of it."""
REMEMBERED = 64
"""The number of this process's syncs in memory; the ledger has all."""


@dataclass
class _Begun:
    """A sync of this process. `run` is the one that the cluster samples for. `phases` are in the order in which they
    came; `result` or `error` is set when the sync is over; `task` ends after that."""

    sync: str
    body: SyncBody
    key: str | None
    started: float
    run: str | None
    phases: list[SyncPhase] = field(default_factory=list)
    finished: float | None = None
    result: SyncResult | None = None
    error: OmniRLError | None = None
    task: "asyncio.Task[SyncResult] | None" = None


class Syncs:
    """Begins and follows syncs. A caller who waits calls `begin` and `result`, one who does not wait `begin` alone."""

    def __init__(
        self,
        bridge: Bridge,
        store: Store,
        events: Events,
        telemetry: Telemetry,
        settings: CoordinatorSettings,
        look: Callable[[], Awaitable[None]],
    ) -> None:
        """`look` reads the state of the cluster, so that whoever hears that a sync is over finds its weights in the
        state."""
        self._bridge = bridge
        self._store = store
        self._events = events
        self._telemetry = telemetry
        self._look = look
        self._roots = tuple(root.resolve() for root in settings.weight_roots)
        # The cluster's run, whose keys they are: a cluster that does not answer now does not say it.
        self._run_sampled = None if settings.cluster is None else settings.cluster.run
        self._begun: dict[str, _Begun] = {}
        self._turn = asyncio.Lock()

    @property
    def running(self) -> str | None:
        return next((begun.sync for begun in self._begun.values() if begun.finished is None), None)

    async def begin(self, body: SyncBody, key: str | None, *, heal: bool = False) -> str:
        """Begin a sync and return its name, or that of the run's earlier sync with the same key. For `heal` see
        `SyncRequest`.

        Raises:
            SyncIsRunningError: another sync is under way.
            IdempotencyError: the key came before, with another body.
            InvalidRequestError: the operator has not allowed the path.
            RayUnavailableError: there is no cluster to bring weights to.
        """
        path = self._allowed(body)
        async with self._turn:
            cluster = await self._bridge.state()
            if cluster.connected:
                self._run_sampled = cluster.run
            if key is not None and (known := await self._known(key, body)) is not None:
                return known
            if (running := self.running) is not None:
                raise SyncIsRunningError(running)
            if not cluster.connected:
                raise RayUnavailableError(cluster.reason)
            begun = _Begun(uuid.uuid4().hex[:12], body, key, time.time(), run=cluster.run)
            self._begun[begun.sync] = begun
            for old in list(self._begun)[:-REMEMBERED]:
                del self._begun[old]
            begun.task = asyncio.create_task(self._run(begun, path, heal))
            begun.task.add_done_callback(_seen)
            return begun.sync

    async def result(self, sync: str) -> SyncResult:
        """Wait until a sync of this process is over, and return what came of it. Raises what the sync failed with. A
        caller who leaves does not end the sync."""
        begun = self._begun[sync]
        assert begun.task is not None, "begin() starts it"
        return await asyncio.shield(begun.task)

    async def wait(self, sync: str) -> None:
        """Wait until a sync is over. Raises what it failed with, for a sync of this process; an earlier one is over
        already, and the ledger has it."""
        if sync in self._begun:
            await self.result(sync)

    async def over(self, sync: str) -> None:
        """Wait until a sync of this process is over, whatever came of it."""
        begun = self._begun.get(sync)
        if begun is not None and begun.task is not None:
            await asyncio.wait([begun.task])

    async def look(self, sync: str) -> SyncAnswer:
        """Return a sync with its phases. Raises `NotFoundError`."""
        begun = self._begun.get(sync)
        if begun is None:
            return sync_answer(await self._store.sync(sync))
        if isinstance(begun.error, UNKNOWN):
            # The bridge died over it, say; what its successor made of it is in the ledger, if it got that far.
            with contextlib.suppress(NotFoundError):
                return sync_answer(await self._store.sync(sync))
        return _answer(begun)

    async def newest(self, limit: int) -> list[SyncAnswer]:
        """Return syncs, the newest first, without phases."""
        found = {answer.sync: answer for answer in map(sync_answer, await self._store.syncs(limit=limit))}
        for sync, begun in self._begun.items():
            if sync not in found or not isinstance(begun.error, UNKNOWN):
                found[sync] = _answer(begun).model_copy(update={"phases": []})
        return sorted(found.values(), key=lambda answer: answer.started, reverse=True)[:limit]

    async def close(self) -> None:
        """Stop following. A sync under way is finished or rolled back by the bridge or its successor."""
        tasks = [begun.task for begun in self._begun.values() if begun.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _known(self, key: str, body: SyncBody) -> str | None:
        run = self._run_sampled
        begun = next((begun for begun in self._begun.values() if (begun.run, begun.key) == (run, key)), None)
        if begun is None:
            return await self._store.sync_by_key(run, key)
        if begun.body != body:
            raise IdempotencyError(f"this key came before, for sync {begun.sync} of other weights; use a new key")
        if isinstance(begun.error, UNKNOWN):
            # The bridge died over it, maybe before it began, or the ledger took no word of it: the ledger knows.
            del self._begun[begun.sync]
            return await self._store.sync_by_key(run, key)
        return begun.sync

    def _allowed(self, body: SyncBody) -> str | None:
        if body.path is None:
            return None
        path = Path(body.path).resolve()
        if not any(path.is_relative_to(root) for root in self._roots):
            roots = ", ".join(map(str, self._roots)) or "there is none"
            raise InvalidRequestError(f"path is not below one of the operator's weight_roots ({roots})")
        return str(path)

    async def _run(self, begun: _Begun, path: str | None, heal: bool) -> SyncResult:
        try:
            return await self._carried_out(begun, path, heal)
        except OmniRLError as error:
            # A ledger that took no event of it, say.
            if begun.result is not None:
                logger.warning("sync %s is over, and that was not told: %s", begun.sync, error)
                return begun.result
            begun.error = begun.error or error
            raise
        except Exception as error:
            logger.exception("sync %s ended unexpectedly", begun.sync)
            if begun.result is not None:
                return begun.result
            begun.error = begun.error or OmniRLError(f"the sync ended unexpectedly: {error!r}")
            raise begun.error from error
        finally:
            # Whatever ended it: a sync without an end would keep all others from beginning.
            begun.finished = begun.finished or time.time()

    async def _carried_out(self, begun: _Begun, path: str | None, heal: bool) -> SyncResult:
        body = begun.body
        asked = {**body.model_dump(), "path": path}
        request = SyncRequest(sync=begun.sync, key=begun.key, heal=heal, **asked)
        await self._events.publish("sync_started", sync=begun.sync, source=body.source)
        try:
            result = await self._bridge.sync(request, lambda event: self._observe(begun, event))
        except OmniRLError as error:
            begun.error = error
            await self._look()
            begun.finished = time.time()
            self._telemetry.syncs.labels("failed").inc()
            await self._store.see_incident(begun.run, _failed(str(error)))
            await self._events.publish(
                "sync_ended", sync=begun.sync, outcome="failed", code=error.code, reason=str(error)
            )
            raise
        begun.result = result
        await self._look()
        begun.finished = time.time()
        self._telemetry.synced(result, begun.finished, weights=body.source != "served")
        if (incident := _wrong(result)) is not None:
            await self._store.see_incident(begun.run, incident)
        else:
            await self._store.end_incidents(begun.run, IncidentEnd("sync", f"sync {begun.sync} was committed"))
        await self._events.publish(
            "sync_ended",
            sync=begun.sync,
            outcome=result.outcome,
            version=result.version,
            serving=result.serving,
            stall=result.stall,
            reason=result.reason,
            nonfinite=list(result.nonfinite),
            replaced=dict(result.replaced),
            out=dict(result.out),
        )
        return result

    def _observe(self, begun: _Begun, event: SyncEvent) -> None:
        begun.phases.append(
            SyncPhase(at=time.time(), phase=event.phase, what=event.what, replica=event.replica, detail=event.detail)
        )
        # The bridge's journal keeps it and tells of it.
        self._events.poke()


def _answer(begun: _Begun) -> SyncAnswer:
    entered = [phase.phase for phase in begun.phases if phase.what == "entered"]
    answer = SyncAnswer(
        sync=begun.sync,
        state="running" if begun.finished is None else "finished",
        phase=entered[-1] if entered else Phase.IDLE,
        key=begun.key,
        source=begun.body.source,
        allow_nonfinite=begun.body.allow_nonfinite,
        started=begun.started,
        finished=begun.finished,
        phases=begun.phases,
    )
    if begun.error is not None:
        return answer.model_copy(update={"outcome": "failed", "reason": str(begun.error)})
    if begun.result is not None:
        return told(answer, begun.result)
    return answer


def _wrong(result: SyncResult) -> NewIncident | None:
    """Return the incident that a sync which is over shows, or None."""
    if result.outcome != "committed":
        return _failed(result.reason)
    if result.elements_proven < result.elements:
        lost = result.elements - result.elements_proven
        of = counted(result.elements, "storage element")
        headline = f"A sync was committed with {lost} of {of} not proven."
        return NewIncident(int(Severity.PAUSE), headline, kind="sync")
    return None


def _failed(reason: str) -> NewIncident:
    headline = f"A sync of weights failed: {reason.rstrip('.')}."
    return NewIncident(int(Severity.MASK), headline, action="the engines serve the weights from before", kind="sync")


def _seen(task: "asyncio.Task[SyncResult]") -> None:
    """Mark a task's failure as seen. Where nobody waits for it, it is still told: in the events and by `look`."""
    if not task.cancelled():
        task.exception()
