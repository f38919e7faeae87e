"""The ledger, awaited: reads in threads of their own, writes until the disk has them."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

import sqlalchemy as sa

from omni_rl.api.events import EventAnswer
from omni_rl.api.runs import RunBody
from omni_rl.consistency.need import Need
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.media_store import MediaStore, Put
from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.run_list import Listed, Wanted
from omni_rl.ledger.tables import events, syncs
from omni_rl.ledger.types import (
    Attempt,
    Event,
    Incident,
    IncidentEnd,
    KeptCheck,
    NewIncident,
    NewState,
    NewStep,
    Part,
    Run,
    Sample,
    Step,
    StepKey,
    StepRow,
    Stored,
    Sync,
    Timeline,
)
from omni_rl.ledger.updates import KeptUpdate, NewUpdate, UpdateKey

READERS = 4
"""Threads that read; a slow query must not keep others waiting."""
P = ParamSpec("P")
T = TypeVar("T")


class Store:
    """Every method raises what the ledger's method of the same name raises."""

    def __init__(self, ledger: Ledger, media: MediaStore) -> None:
        self._ledger = ledger
        self._media = media
        self._readers = ThreadPoolExecutor(READERS, "ledger-reader")

    async def close(self) -> None:
        """Lets go of the ledger, after everything that was submitted."""
        # A reader that is still at work when the pool goes leaves its connection open.
        await asyncio.to_thread(self._readers.shutdown)
        await asyncio.to_thread(self._ledger.close)

    async def ready(self) -> None:
        """Raises `LedgerError` where nothing can be kept."""
        await self._read(self._ledger.ready)

    async def add_check(self, found: Mapping[str, Any], key: StepKey | None) -> KeptCheck:
        return await asyncio.wrap_future(self._ledger.add_check(found, key))

    async def checks(self, limit: int, run: str | None, attempt: int | None, step: int | None) -> list[KeptCheck]:
        return await self._read(self._ledger.checks, limit=limit, run=run, attempt=attempt, step=step)

    async def check(self, number: int) -> KeptCheck:
        return await self._read(self._ledger.check, number)

    async def put_update(self, new: NewUpdate) -> list[int]:
        return await asyncio.wrap_future(self._ledger.put_update(new))

    async def change_update(self, new: NewUpdate) -> list[int]:
        return await asyncio.wrap_future(self._ledger.change_update(new))

    async def update(self, key: UpdateKey) -> KeptUpdate | None:
        return await self._read(self._ledger.update, key)

    async def updates(self, run: str, limit: int) -> list[KeptUpdate]:
        return await self._read(self._ledger.updates, run, limit=limit)

    async def remembered_updates(self, run: str) -> list[KeptUpdate]:
        return await self._read(self._ledger.remembered_updates, run)

    async def to_remember(self, limit: int) -> list[Run]:
        return await self._read(self._ledger.to_remember, limit)

    async def listed(self, wanted: Wanted) -> tuple[list[Listed], int]:
        return await self._read(self._ledger.listed, wanted)

    async def one_listed(self, run: str, unseen: Collection[str]) -> Listed:
        return await self._read(self._ledger.one_listed, run, unseen)

    async def needs(self, unseen: Collection[str]) -> dict[Need, int]:
        return await self._read(self._ledger.needs, unseen)

    async def overdue(self, now: float, limit: int) -> list[str]:
        return await self._read(self._ledger.overdue, now, limit)

    async def attempts(self, run: str) -> list[Attempt]:
        return await self._read(self._ledger.attempts, run)

    async def run(self, run: str) -> Run:
        return await self._read(self._ledger.run, run)

    async def put_run(self, body: RunBody) -> tuple[Run, Stored]:
        stored = await asyncio.wrap_future(self._ledger.put_run(body.run, body.model_dump(mode="json")))
        return await self._read(self._ledger.run, body.run), stored

    async def put_state(self, run: str, new: NewState) -> None:
        await asyncio.wrap_future(self._ledger.put_state(run, new))

    async def put_part(self, key: StepKey, rank: int, records: StepRecords) -> Stored:
        return await asyncio.wrap_future(self._ledger.put_part(key, rank, records))

    async def parts(self, key: StepKey) -> list[Part]:
        return await self._read(self._ledger.parts, key)

    async def records(self, key: StepKey) -> dict[int, StepRecords]:
        return await self._read(self._ledger.records, key)

    async def seal(self, step: NewStep) -> Stored:
        return await asyncio.wrap_future(self._ledger.seal(step))

    async def add_training(self, key: StepKey, training: Mapping[str, float | None]) -> None:
        await asyncio.wrap_future(self._ledger.add_training(key, training))

    async def steps(self, run: str, attempt: int, after: int, limit: int) -> list[StepRow]:
        return await self._read(self._ledger.steps, run, attempt, after=after, limit=limit)

    async def timeline(
        self,
        run: str,
        attempt: int,
        figures: Sequence[str],
        kind: str,
        first: int | None,
        last: int | None,
        points: int,
    ) -> Timeline:
        return await self._read(
            self._ledger.timeline, run, attempt, figures, kind=kind, first=first, last=last, points=points
        )

    async def step(self, key: StepKey) -> Step:
        return await self._read(self._ledger.step, key)

    async def sample(self, key: StepKey, sample: str, rank: int | None) -> Sample:
        return await self._read(self._ledger.sample, key, sample, rank)

    async def add_event(self, kind: str, run: str | None, data: dict[str, object]) -> None:
        await asyncio.wrap_future(self._ledger.add_event(kind, data, run))

    async def events(self, *, after: int, limit: int) -> list[EventAnswer]:
        return [_event(event) for event in await self._read(self._ledger.events, after=after, limit=limit)]

    async def last_event(self) -> int:
        return await self._read(self._ledger.last_event)

    async def see_incident(self, run: str | None, new: NewIncident) -> None:
        await asyncio.wrap_future(self._ledger.see_incident(run, new))

    async def end_incidents(self, run: str | None, over: IncidentEnd) -> None:
        await asyncio.wrap_future(self._ledger.end_incidents(run, over))

    async def end_incident(self, number: int, why: str) -> Incident:
        return await asyncio.wrap_future(self._ledger.end_incident(number, why))

    async def acknowledge(self, number: int, by: str) -> Incident:
        return await asyncio.wrap_future(self._ledger.acknowledge(number, by))

    async def add_note(self, number: int, by: str, text: str) -> Incident:
        return await asyncio.wrap_future(self._ledger.add_note(number, by, text))

    async def incident_told(self, number: int, webhook: str, state: str) -> None:
        await asyncio.wrap_future(self._ledger.incident_told(number, webhook, state))

    async def incident(self, number: int) -> Incident:
        return await self._read(self._ledger.incident, number)

    async def incidents(
        self,
        *,
        still_open: bool | None = None,
        run: str | None = None,
        kind: str | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> list[Incident]:
        return await self._read(
            self._ledger.incidents, still_open=still_open, run=run, kind=kind, before=before, limit=limit
        )

    async def incidents_since(self, at: float) -> list[Incident]:
        return await self._read(self._ledger.incidents_since, at)

    async def put_media(self, content: bytes) -> Put:
        return await self._read(self._media.put, content)

    async def media(self, digest: str) -> bytes:
        return await self._read(self._media.get, digest)

    async def tidy_media(self) -> None:
        """Let go of what is too old."""
        await self._read(self._media.tidy)

    async def sync(self, sync: str) -> Sync:
        return await self._read(self._ledger.sync, sync)

    async def syncs(self, limit: int) -> list[Sync]:
        return await self._read(self._ledger.syncs, limit=limit)

    async def sync_by_key(self, key: str) -> str | None:
        """The sync that came with an idempotency key."""
        wanted = sa.select(syncs.c.sync).where(syncs.c.key == key)
        return await self._read(self._scalar, wanted)

    async def held_by_person(self) -> str | None:
        """Why a person holds the gate, if one does: the last word on it is an event."""
        said = sa.select(events.c.data).where(events.c.kind == "hold").order_by(events.c.id.desc()).limit(1)
        data = await self._read(self._scalar, said)
        return str(data["reason"]) if data is not None and data["what"] == "held" else None

    def _scalar(self, query: sa.Select[Any]) -> Any:
        with self._ledger.database.read() as connection:
            return connection.execute(query).scalar()

    async def _read(self, query: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, partial(query, *args, **kwargs))


def _event(event: Event) -> EventAnswer:
    return EventAnswer(id=event.id, at=event.at, kind=event.kind, run=event.run, data=dict(event.data))
