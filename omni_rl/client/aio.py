"""The coordinator's API for programs with an event loop."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import httpx

from omni_rl.api.events import EventAnswer
from omni_rl.api.incidents import IncidentAnswer
from omni_rl.api.jobs import GrpoParameters, JobAnswer, PpoParameters
from omni_rl.api.media import MediaAnswer
from omni_rl.api.runs import AttemptAnswer, RunAnswer, RunBody, RunLine
from omni_rl.api.state import GateAnswer, ReadyAnswer, SessionAnswer, StateAnswer
from omni_rl.api.steps import PartAnswer, SampleAnswer, SealBody, StepAnswer, StepLine, TimelineAnswer
from omni_rl.api.syncs import CheckAnswer, CheckBody, SyncAnswer, SyncBody
from omni_rl.api.updates import AnnouncementBody, ReceiptBody, UpdateAnswer
from omni_rl.client import calls
from omni_rl.client.calls import Call
from omni_rl.client.failures import raise_for_problem
from omni_rl.client.retries import Retries, after_answer, after_failure
from omni_rl.client.settings import ClientSettings
from omni_rl.client.streams import EventReader
from omni_rl.consistency.incidents import IncidentKind
from omni_rl.consistency.need import NeedName
from omni_rl.kinds import OVERALL

if TYPE_CHECKING:
    from omni_rl.client.sealed import Sealed
    from omni_rl.ledger.records import StepRecords

T = TypeVar("T")
DEFAULT = Retries()


class AsyncClient:
    """As `Client`, method by method."""

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        timeout: float = 30.0,
        retries: Retries = DEFAULT,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        settings = ClientSettings.of(url, token)
        self._retries = retries
        self._http = httpx.AsyncClient(
            base_url=settings.url,
            headers=settings.headers,
            timeout=timeout,
            transport=transport,
            verify=settings.verify,
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def whoami(self) -> SessionAnswer:
        return await self._send(calls.whoami())

    async def ready(self) -> ReadyAnswer:
        return await self._send(calls.ready())

    async def state(self) -> StateAnswer:
        return await self._send(calls.state())

    async def pause(self, reason: str) -> GateAnswer:
        return await self._send(calls.pause(reason))

    async def resume(self, run: str | None = None) -> GateAnswer:
        return await self._send(calls.resume(run))

    async def create_run(self, body: RunBody) -> RunAnswer:
        return await self._send(calls.create_run(body))

    async def runs(
        self,
        limit: int = 100,
        *,
        search: str = "",
        needs: Sequence[NeedName] = (),
        sort: Literal["newest", "need"] = "newest",
        offset: int = 0,
    ) -> list[RunLine]:
        return await self._send(calls.runs(limit, search=search, needs=needs, sort=sort, offset=offset))

    async def attempts(self, run: str) -> list[AttemptAnswer]:
        return await self._send(calls.attempts(run))

    async def incidents(
        self,
        limit: int = 100,
        *,
        is_open: bool | None = None,
        run: str | None = None,
        kind: IncidentKind | None = None,
        before: int | None = None,
    ) -> list[IncidentAnswer]:
        return await self._send(calls.incidents(limit, is_open=is_open, run=run, kind=kind, before=before))

    async def incident(self, number: int) -> IncidentAnswer:
        return await self._send(calls.incident(number))

    async def acknowledge(self, incident: int) -> IncidentAnswer:
        return await self._send(calls.acknowledge(incident))

    async def note(self, incident: int, text: str) -> IncidentAnswer:
        return await self._send(calls.note(incident, text))

    async def end_incident(self, incident: int) -> IncidentAnswer:
        return await self._send(calls.end_incident(incident))

    async def end_run(self, name: str) -> RunAnswer:
        """Say that a run is over, so that no step is no silence."""
        return await self._send(calls.end_run(name))

    async def run(self, name: str) -> RunLine:
        return await self._send(calls.run(name))

    async def put_part(
        self, run: str, attempt: int, step: int, rank: int, records: "StepRecords | Sequence[Mapping[str, Any]]"
    ) -> PartAnswer:
        return await self._send(calls.put_part(run, attempt, step, rank, calls.as_arrow(records)))

    async def seal(
        self,
        run: str,
        attempt: int,
        step: int,
        *,
        parts: int | None = None,
        training: Mapping[str, float | None] | None = None,
    ) -> "Sealed":
        return await self._send(calls.seal(run, attempt, step, SealBody(parts=parts, training=dict(training or {}))))

    async def add_training(self, run: str, attempt: int, step: int, training: Mapping[str, float | None]) -> StepLine:
        return await self._send(calls.add_training(run, attempt, step, training))

    async def put_update(self, run: str, engine: str, number: int, body: ReceiptBody) -> UpdateAnswer:
        return await self._send(calls.put_update(run, engine, number, body))

    async def announce_update(self, run: str, number: int, body: AnnouncementBody) -> UpdateAnswer:
        return await self._send(calls.announce_update(run, number, body))

    async def updates(self, run: str, limit: int = 100) -> list[UpdateAnswer]:
        return await self._send(calls.updates(run, limit))

    async def steps(
        self, run: str, *, attempt: int | None = None, after: int | None = None, limit: int = 1000
    ) -> list[StepLine]:
        return await self._send(calls.steps(run, attempt, after, limit))

    async def timeline(
        self,
        run: str,
        *,
        attempt: int | None = None,
        kind: str = OVERALL,
        first: int | None = None,
        last: int | None = None,
        points: int = 1000,
        metrics: Sequence[str] | None = None,
    ) -> TimelineAnswer:
        call = calls.timeline(run, attempt=attempt, kind=kind, first=first, last=last, points=points, metrics=metrics)
        return await self._send(call)

    async def step(self, run: str, attempt: int, step: int) -> StepAnswer:
        return await self._send(calls.step(run, attempt, step))

    async def sample(self, run: str, attempt: int, step: int, sample: str, *, rank: int | None = None) -> SampleAnswer:
        return await self._send(calls.sample(run, attempt, step, sample, rank))

    async def put_media(self, content: bytes, content_type: str) -> MediaAnswer:
        return await self._send(calls.put_media(content, content_type))

    async def media(self, digest: str) -> bytes:
        return await self._send(calls.media(digest))

    async def sync(
        self, body: SyncBody = calls.FROM_TRAINER, *, wait: bool = True, key: str | None = None, seconds: float = 600.0
    ) -> SyncAnswer:
        return await self._send(calls.sync(body, wait=wait, key=key, seconds=seconds))

    async def syncs(self, limit: int = 100) -> list[SyncAnswer]:
        return await self._send(calls.syncs(limit))

    async def sync_named(self, sync: str) -> SyncAnswer:
        return await self._send(calls.sync_named(sync))

    async def check(self, body: CheckBody = calls.PROBE) -> CheckAnswer:
        return await self._send(calls.check(body))

    async def checks(
        self, limit: int = 100, *, run: str | None = None, attempt: int | None = None, step: int | None = None
    ) -> list[CheckAnswer]:
        return await self._send(calls.checks(limit, run, attempt, step))

    async def check_numbered(self, check: int) -> CheckAnswer:
        return await self._send(calls.check_numbered(check))

    async def submit(self, parameters: GrpoParameters | PpoParameters, *, key: str | None = None) -> JobAnswer:
        return await self._send(calls.submit(parameters, key))

    async def jobs(self, limit: int = 100) -> list[JobAnswer]:
        return await self._send(calls.jobs(limit))

    async def job(self, job: str) -> JobAnswer:
        return await self._send(calls.job(job))

    async def stop_job(self, job: str) -> JobAnswer:
        return await self._send(calls.stop_job(job))

    async def logs(self, job: str) -> str:
        return await self._send(calls.logs(job))

    async def event_page(self, after: int | None = None, limit: int = 512) -> list[EventAnswer]:
        return await self._send(calls.event_page(after, limit))

    async def events(self, after: int | None = None, run: str | None = None) -> AsyncIterator[EventAnswer]:
        """Follow events for ever. A lost connection is taken up again after the last event seen."""
        reader, attempt = EventReader(after), 1
        while True:
            call = calls.follow(reader.last, run)
            try:
                async with self._http.stream(
                    call.method, call.path, params=call.params, headers=call.headers, timeout=calls.STREAM_TIMEOUT
                ) as response:
                    if not response.is_success:
                        await response.aread()
                        raise_for_problem(response)
                    attempt = 1
                    async for line in response.aiter_lines():
                        if (event := reader.feed(line)) is not None:
                            yield event
            except httpx.TransportError as error:
                await asyncio.sleep(after_failure(call, error, attempt, self._retries))
                attempt += 1

    async def _send(self, call: Call[T]) -> T:
        for attempt in count(1):
            try:
                response = await self._http.request(**call.request(self._http.timeout))
            except httpx.TransportError as error:
                await asyncio.sleep(after_failure(call, error, attempt, self._retries))
                continue
            wait = after_answer(response, attempt, self._retries)
            if wait is None:
                return call.answer(response)
            await asyncio.sleep(wait)
        raise AssertionError("attempts end")
