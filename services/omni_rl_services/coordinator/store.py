"""The ledger, awaited: reads in threads of their own, writes until the data is on the disk."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, BinaryIO, Concatenate, ParamSpec, TypeAlias, TypeVar

import sqlalchemy as sa

from omni_rl.api.runs import RunBody
from omni_rl.described import described
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.media_store import MediaStore, Put
from omni_rl.ledger.tables import events, syncs
from omni_rl.ledger.types import Run, Stored

READERS = 4
"""The number of threads that read, so that a slow query does not make others wait."""
P = ParamSpec("P")
T = TypeVar("T")
Awaited: TypeAlias = Coroutine[None, None, T]


def _writes(write: Callable[Concatenate[Ledger, P], Future[T]]) -> "Callable[Concatenate[Store, P], Awaited[T]]":
    async def method(store: "Store", /, *arguments: P.args, **options: P.kwargs) -> T:
        return await asyncio.wrap_future(write(store._ledger, *arguments, **options))

    return described(method, write, first=1)


def _reads(read: Callable[Concatenate[Ledger, P], T]) -> "Callable[Concatenate[Store, P], Awaited[T]]":
    async def method(store: "Store", /, *arguments: P.args, **options: P.kwargs) -> T:
        return await store._read(read, store._ledger, *arguments, **options)

    return described(method, read, first=1)


class Store:
    """The ledger and the media store for asyncio code. Every method does, and raises, what theirs of the same name
    does."""

    def __init__(self, ledger: Ledger, media: MediaStore) -> None:
        self._ledger = ledger
        self._media = media
        self._readers = ThreadPoolExecutor(READERS, "ledger-reader")

    async def close(self) -> None:
        """Close the ledger, after everything that was submitted."""
        # A reader that is still at work when the pool goes leaves its connection open.
        await asyncio.to_thread(self._readers.shutdown)
        await asyncio.to_thread(self._ledger.close)

    async def ready(self) -> None:
        """Raise `LedgerError` where nothing can be stored."""
        await self._read(self._ledger.ready)

    add_check = _writes(Ledger.add_check)
    put_update = _writes(Ledger.put_update)
    change_update = _writes(Ledger.change_update)
    put_state = _writes(Ledger.put_state)
    put_part = _writes(Ledger.put_part)
    seal = _writes(Ledger.seal)
    add_training = _writes(Ledger.add_training)
    see_incident = _writes(Ledger.see_incident)
    end_incidents = _writes(Ledger.end_incidents)
    end_incident = _writes(Ledger.end_incident)
    acknowledge = _writes(Ledger.acknowledge)
    add_note = _writes(Ledger.add_note)
    incident_told = _writes(Ledger.incident_told)

    checks = _reads(Ledger.checks)
    check = _reads(Ledger.check)
    update = _reads(Ledger.update)
    updates = _reads(Ledger.updates)
    remembered_updates = _reads(Ledger.remembered_updates)
    told_update = _reads(Ledger.told_update)
    to_remember = _reads(Ledger.to_remember)
    listed = _reads(Ledger.listed)
    one_listed = _reads(Ledger.one_listed)
    needs = _reads(Ledger.needs)
    overdue = _reads(Ledger.overdue)
    attempts = _reads(Ledger.attempts)
    run = _reads(Ledger.run)
    parts = _reads(Ledger.parts)
    records = _reads(Ledger.records)
    steps = _reads(Ledger.steps)
    steps_spread = _reads(Ledger.steps_spread)
    timeline = _reads(Ledger.timeline)
    step = _reads(Ledger.step)
    sample = _reads(Ledger.sample)
    events = _reads(Ledger.events)
    last_event = _reads(Ledger.last_event)
    incident = _reads(Ledger.incident)
    incidents = _reads(Ledger.incidents)
    open_severities = _reads(Ledger.open_severities)
    runs_with_open = _reads(Ledger.runs_with_open)
    incidents_since = _reads(Ledger.incidents_since)
    sync = _reads(Ledger.sync)
    syncs = _reads(Ledger.syncs)

    async def put_run(self, body: RunBody) -> tuple[Run, Stored]:
        stored = await asyncio.wrap_future(self._ledger.put_run(body.run, body.model_dump(mode="json")))
        return await self._read(self._ledger.run, body.run), stored

    async def add_event(self, kind: str, run: str | None, data: dict[str, object]) -> None:
        await asyncio.wrap_future(self._ledger.add_event(kind, data, run))

    async def put_media(self, content: bytes) -> Put:
        return await self._read(self._media.put, content)

    async def open_media(self, digest: str) -> BinaryIO:
        return await self._read(self._media.open, digest)

    async def tidy_media(self) -> None:
        """Drop media that are too old."""
        await self._read(self._media.tidy)

    async def sync_by_key(self, run: str | None, key: str) -> str | None:
        """Return the sync of a cluster's run that came with an idempotency key, or None."""
        wanted = sa.select(syncs.c.sync).where(syncs.c.run == run, syncs.c.key == key)
        return await self._read(self._scalar, wanted)

    async def held_by_person(self) -> str | None:
        """Return why a person holds the gate, or None if no person does: the newest event of that kind says so."""
        said = sa.select(events.c.data).where(events.c.kind == "hold").order_by(events.c.id.desc()).limit(1)
        data = await self._read(self._scalar, said)
        return str(data["reason"]) if data is not None and data["what"] == "held" else None

    def _scalar(self, query: sa.Select[Any]) -> Any:
        with self._ledger.database.read() as connection:
            return connection.execute(query).scalar()

    async def _read(self, query: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, partial(query, *args, **kwargs))
