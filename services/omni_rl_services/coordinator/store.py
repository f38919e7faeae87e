"""The ledger, awaited: reads in threads of their own, writes until the disk has them."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

import sqlalchemy as sa

from omni_rl.api.events import EventAnswer
from omni_rl.api.runs import RunBody
from omni_rl.api.state import AlarmAnswer
from omni_rl.consistency.policy import Outcome
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.media_store import MediaStore, Put
from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.tables import events, syncs
from omni_rl.ledger.types import (
    Event,
    KeptCheck,
    NewAlarm,
    NewEvent,
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
from omni_rl_services.coordinator.runs import Run as LiveRun
from omni_rl_services.coordinator.runs import transition_events
from omni_rl_services.coordinator.views import alarm_answer

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
        await asyncio.to_thread(self._ledger.close)
        self._readers.shutdown()

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

    async def runs(self) -> list[Run]:
        return await self._read(self._ledger.runs)

    async def run(self, run: str) -> Run:
        return await self._read(self._ledger.run, run)

    async def put_run(self, body: RunBody) -> tuple[Run, Stored]:
        stored = await asyncio.wrap_future(self._ledger.put_run(body.run, body.model_dump(mode="json")))
        return await self._read(self._ledger.run, body.run), stored

    async def put_drift(self, run: LiveRun, outcome: Outcome) -> None:
        """A run's drift, with an event for each of its transitions."""
        told = [NewEvent(kind, data, run.name) for kind, data in transition_events(outcome)]
        state = run.state(outcome.drift, run.history)
        await asyncio.wrap_future(self._ledger.put_state(run.name, state, told))

    async def put_state(self, run: str, state: Mapping[str, Any], what: Sequence[NewEvent]) -> None:
        await asyncio.wrap_future(self._ledger.put_state(run, state, what))

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

    async def open_alarm(self, run: str, alarm: NewAlarm, key: StepKey | None) -> None:
        await asyncio.wrap_future(self._ledger.open_alarm(run, alarm, key))

    async def close_alarms(self, run: str, action: str, but: Collection[int] = ()) -> None:
        await asyncio.wrap_future(self._ledger.close_alarms(run, action, but))

    async def open_alarms(self, run: str) -> list[AlarmAnswer]:
        """A run's alarms that are not over, the newest first."""
        return [alarm_answer(alarm) for alarm in await self._read(self._ledger.alarms, run, still_open=True)]

    async def alarms(self, run: str, limit: int) -> list[AlarmAnswer]:
        """A run's alarms, the newest first."""
        return [alarm_answer(alarm) for alarm in await self._read(self._ledger.alarms, run, limit=limit)]

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
