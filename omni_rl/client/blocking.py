"""The coordinator's API for programs that wait."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from omni_rl.errors import InvalidRequestError, RecordError
from omni_rl.kinds import OVERALL

if TYPE_CHECKING:
    from omni_rl.client.older import Known
    from omni_rl.client.sealed import Sealed
    from omni_rl.ledger.records import StepRecords

T = TypeVar("T")
DEFAULT = Retries()


class Client:
    """Every method raises what the coordinator raised (`omni_rl.errors`, by the problem's code), or
    `CoordinatorUnreachableError`. A request whose answer was lost is sent again where that changes nothing.

    Without `url` and `token`, OMNI_RL_URL and OMNI_RL_TOKEN say where and as whom. Use it as a context manager, or
    `close` it. With `leave_out`, what a coordinator of an older version does not know is left out of what is sent, and
    `leave_out` is called with a sentence that says so, each time; without, the coordinator's refusal is raised.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        timeout: float = 30.0,
        retries: Retries = DEFAULT,
        transport: httpx.BaseTransport | None = None,
        leave_out: Callable[[str], None] | None = None,
    ) -> None:
        settings = ClientSettings.of(url, token)
        self._retries = retries
        self._leave_out = leave_out
        self._known: Known | None = None
        self._http = httpx.Client(
            base_url=settings.url,
            headers=settings.headers,
            timeout=timeout,
            transport=transport,
            verify=settings.verify,
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def whoami(self) -> SessionAnswer:
        """Whose token this is, and its scope."""
        return self._send(calls.whoami())

    def ready(self) -> ReadyAnswer:
        """Whether the ledger answers, and every actor where there is a cluster; raises nothing if they do not."""
        return self._send(calls.ready())

    def state(self) -> StateAnswer:
        """Gate, cluster, runs, the sync under way, open alarms."""
        return self._send(calls.state())

    def pause(self, reason: str) -> GateAnswer:
        """Stop generation."""
        return self._send(calls.pause(reason))

    def resume(self, run: str | None = None) -> GateAnswer:
        """Let generation go on, and vouch for it."""
        return self._send(calls.resume(run))

    def create_run(self, body: RunBody) -> RunAnswer:
        """Make a run; the same again is fine."""
        return self._send(calls.create_run(body))

    def runs(
        self,
        limit: int = 100,
        *,
        search: str = "",
        needs: Sequence[NeedName] = (),
        sort: Literal["newest", "need"] = "newest",
        offset: int = 0,
    ) -> list[RunLine]:
        """Those whose names have `search` in them, of these needs alone if any are given, without the first
        `offset`."""
        return self._send(calls.runs(limit, search=search, needs=needs, sort=sort, offset=offset))

    def attempts(self, run: str) -> list[AttemptAnswer]:
        """Each start of a run, oldest first."""
        return self._send(calls.attempts(run))

    def incidents(
        self,
        limit: int = 100,
        *,
        is_open: bool | None = None,
        run: str | None = None,
        kind: IncidentKind | None = None,
        before: int | None = None,
    ) -> list[IncidentAnswer]:
        """The newest first: all, or those that are open (or not), of a run, of a kind, with numbers below `before`."""
        return self._send(calls.incidents(limit, is_open=is_open, run=run, kind=kind, before=before))

    def incident(self, number: int) -> IncidentAnswer:
        return self._send(calls.incident(number))

    def acknowledge(self, incident: int) -> IncidentAnswer:
        """Say that one has it in hand."""
        return self._send(calls.acknowledge(incident))

    def note(self, incident: int, text: str) -> IncidentAnswer:
        """Write to an incident."""
        return self._send(calls.note(incident, text))

    def end_incident(self, incident: int) -> IncidentAnswer:
        """Say that an incident is over; its run is judged afresh."""
        return self._send(calls.end_incident(incident))

    def end_run(self, name: str) -> RunAnswer:
        """Say that a run is over, so that no step is no silence."""
        return self._send(calls.end_run(name))

    def run(self, name: str) -> RunLine:
        return self._send(calls.run(name))

    def put_part(
        self, run: str, attempt: int, step: int, rank: int, records: "StepRecords | Sequence[Mapping[str, Any]]"
    ) -> PartAnswer:
        """One rank's records of a step; the same again is fine. Durable when this returns."""
        return self._send(calls.put_part(run, attempt, step, rank, calls.as_arrow(records)))

    def seal(
        self,
        run: str,
        attempt: int,
        step: int,
        *,
        parts: int | None = None,
        training: Mapping[str, float | None] | None = None,
    ) -> "Sealed":
        """Close a step and judge it. `parts`: how many ranks must have posted; `training`: the trainer's figures."""
        return self._send(calls.seal(run, attempt, step, SealBody(parts=parts, training=dict(training or {}))))

    def add_training(self, run: str, attempt: int, step: int, training: Mapping[str, float | None]) -> StepLine:
        """Figures that the trainer has once it has learnt from a sealed step, beside those it was sealed with."""
        return self._send(calls.add_training(run, attempt, step, training))

    def put_update(self, run: str, engine: str, number: int, body: ReceiptBody) -> UpdateAnswer:
        """What one worker of an engine holds after an update; the same again is fine."""
        return self._send(calls.put_update(run, engine, number, body))

    def announce_update(self, run: str, number: int, body: AnnouncementBody) -> UpdateAnswer:
        """What the trainer's weights are as of its update of this number; the same again is fine."""
        return self._send(calls.announce_update(run, number, body))

    def updates(self, run: str, limit: int = 100) -> list[UpdateAnswer]:
        """The newest first: the engines' and the trainer's."""
        return self._send(calls.updates(run, limit))

    def steps(
        self, run: str, *, attempt: int | None = None, after: int | None = None, limit: int = 1000
    ) -> list[StepLine]:
        """Sealed steps after number `after`, in order; of the latest attempt unless one is named."""
        return self._send(calls.steps(run, attempt, after, limit))

    def timeline(
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
        """Figures in at most `points` buckets of steps, with the extremes of each; all metrics, or those named."""
        call = calls.timeline(run, attempt=attempt, kind=kind, first=first, last=last, points=points, metrics=metrics)
        return self._send(call)

    def step(self, run: str, attempt: int, step: int) -> StepAnswer:
        return self._send(calls.step(run, attempt, step))

    def sample(self, run: str, attempt: int, step: int, sample: str, *, rank: int | None = None) -> SampleAnswer:
        """A kept sample's tokens, and the digests of its media; of several ranks' of that name the furthest apart."""
        return self._send(calls.sample(run, attempt, step, sample, rank))

    def put_media(self, content: bytes, content_type: str) -> MediaAnswer:
        """Keep a picture, sound or video, by the digest that records name it with."""
        return self._send(calls.put_media(content, content_type))

    def media(self, digest: str) -> bytes:
        return self._send(calls.media(digest))

    def sync(
        self, body: SyncBody = calls.FROM_TRAINER, *, wait: bool = True, key: str | None = None, seconds: float = 600.0
    ) -> SyncAnswer:
        """Bring weights to every replica; `wait` for the result at most `seconds`. The same key is the same sync."""
        return self._send(calls.sync(body, wait=wait, key=key, seconds=seconds))

    def syncs(self, limit: int = 100) -> list[SyncAnswer]:
        """The newest first."""
        return self._send(calls.syncs(limit))

    def sync_named(self, sync: str) -> SyncAnswer:
        return self._send(calls.sync_named(sync))

    def check(self, body: CheckBody = calls.PROBE) -> CheckAnswer:
        """Compare both policies now."""
        return self._send(calls.check(body))

    def checks(
        self, limit: int = 100, *, run: str | None = None, attempt: int | None = None, step: int | None = None
    ) -> list[CheckAnswer]:
        """Checks that were made, the newest first: all, or those about steps of a run, of an attempt, or about one
        step. With their evidence alone: `check_numbered` has figures and legs too."""
        return self._send(calls.checks(limit, run, attempt, step))

    def check_numbered(self, check: int) -> CheckAnswer:
        """One check, whole."""
        return self._send(calls.check_numbered(check))

    def submit(self, parameters: GrpoParameters | PpoParameters, *, key: str | None = None) -> JobAnswer:
        """Submit a job. The same key is the same job."""
        return self._send(calls.submit(parameters, key))

    def jobs(self, limit: int = 100) -> list[JobAnswer]:
        """The newest first."""
        return self._send(calls.jobs(limit))

    def job(self, job: str) -> JobAnswer:
        return self._send(calls.job(job))

    def stop_job(self, job: str) -> JobAnswer:
        return self._send(calls.stop_job(job))

    def logs(self, job: str) -> str:
        return self._send(calls.logs(job))

    def event_page(self, after: int | None = None, limit: int = 512) -> list[EventAnswer]:
        """Events after a number; without one, the last."""
        return self._send(calls.event_page(after, limit))

    def events(self, after: int | None = None, run: str | None = None) -> Iterator[EventAnswer]:
        """Follow events for ever. A lost connection is taken up again after the last event seen."""
        reader, attempt = EventReader(after), 1
        while True:
            call = calls.follow(reader.last, run)
            try:
                with self._http.stream(
                    call.method, call.path, params=call.params, headers=call.headers, timeout=calls.STREAM_TIMEOUT
                ) as response:
                    if not response.is_success:
                        response.read()
                        raise_for_problem(response)
                    attempt = 1
                    for line in response.iter_lines():
                        if (event := reader.feed(line)) is not None:
                            yield event
            except httpx.TransportError as error:
                time.sleep(after_failure(call, error, attempt, self._retries))
                attempt += 1

    def _send(self, call: Call[T]) -> T:
        if self._leave_out is None:
            return self._sent(call)
        if self._known is not None:
            return self._sent(self._without_unknown(call, self._known))
        try:
            return self._sent(call)
        except (InvalidRequestError, RecordError):
            self._known = self._sent(calls.known())
            known = self._without_unknown(call, self._known)
            if known is call:
                raise
            return self._sent(known)

    def _without_unknown(self, call: Call[T], known: "Known") -> Call[T]:
        """The call as the coordinator knows it; itself if nothing had to be left out."""
        assert self._leave_out is not None
        fewer, unknown = known.without_unknown(call)
        if unknown:
            self._leave_out(known.sentence(unknown))
        return fewer

    def _sent(self, call: Call[T]) -> T:
        for attempt in count(1):
            try:
                response = self._http.request(**call.request(self._http.timeout))
            except httpx.TransportError as error:
                time.sleep(after_failure(call, error, attempt, self._retries))
                continue
            wait = after_answer(response, attempt, self._retries)
            if wait is None:
                return call.answer(response)
            time.sleep(wait)
        raise AssertionError("attempts end")
