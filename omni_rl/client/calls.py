"""Every route as a value: what is sent, whether it may be sent again, and how its answer is read."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar
from urllib.parse import quote

import httpx
from blake3 import blake3
from pydantic import BaseModel, TypeAdapter, ValidationError

from omni_rl.api.events import EventAnswer
from omni_rl.api.incidents import IncidentAnswer, NoteBody
from omni_rl.api.jobs import GrpoBody, GrpoParameters, JobAnswer, PpoBody, PpoParameters
from omni_rl.api.media import MediaAnswer
from omni_rl.api.runs import AttemptAnswer, RunAnswer, RunBody, RunLine
from omni_rl.api.state import GateAnswer, PauseBody, ReadyAnswer, ResumeBody, SessionAnswer, StateAnswer
from omni_rl.api.steps import PartAnswer, SampleAnswer, SealBody, StepAnswer, StepLine, TimelineAnswer, TrainingBody
from omni_rl.api.syncs import CheckAnswer, CheckBody, SyncAnswer, SyncBody
from omni_rl.api.updates import AnnouncementBody, ReceiptBody, UpdateAnswer
from omni_rl.client.failures import raise_for_problem, unreadable
from omni_rl.consistency.incidents import IncidentKind
from omni_rl.consistency.need import NeedName

if TYPE_CHECKING:
    from omni_rl.client.older import Known
    from omni_rl.client.sealed import Sealed
    from omni_rl.ledger.records import StepRecords

T_co = TypeVar("T_co", covariant=True)
M = TypeVar("M", bound=BaseModel)
FROM_TRAINER = SyncBody()
PROBE = CheckBody()
STREAM_TIMEOUT = httpx.Timeout(60.0)
"""The coordinator sends a sign of life every 15 s."""
ARROW = "application/vnd.apache.arrow.stream"
JSON = "application/json"


@dataclass(frozen=True)
class Call(Generic[T_co]):
    """One request. `repeatable`: a second one with the same content changes nothing more, so a lost answer may be
    asked for again. `seconds`: how long the answer may take, None for the client's own timeout.
    """

    method: str
    path: str
    read: Callable[[httpx.Response], T_co]
    params: Mapping[str, Any] = field(default_factory=dict)
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool = True
    seconds: float | None = None
    answers: frozenset[int] = frozenset()
    """Statuses besides 2xx that are an answer, not an error."""

    def request(self, timeout: httpx.Timeout) -> dict[str, Any]:
        """Arguments of httpx's `request`."""
        return {
            "method": self.method,
            "url": self.path,
            "params": self.params,
            "content": self.content,
            "headers": self.headers,
            "timeout": timeout if self.seconds is None else httpx.Timeout(self.seconds, connect=timeout.connect),
        }

    def answer(self, response: httpx.Response) -> T_co:
        """What the coordinator said.

        Raises what it raised, or `ApiError` for an answer that this version does not know.
        """
        if response.status_code not in self.answers:
            raise_for_problem(response)
        try:
            return self.read(response)
        except ValidationError as error:
            raise unreadable(response, error) from None


# A newer coordinator's answers have fields that this version does not know, also in bodies that it gives back.
def _as(model: type[M]) -> Callable[[httpx.Response], M]:
    return lambda response: model.model_validate_json(response.content, extra="ignore")


def _as_list(model: type[M]) -> Callable[[httpx.Response], list[M]]:
    adapter = TypeAdapter(list[model])  # type: ignore[valid-type]
    return lambda response: adapter.validate_json(response.content, extra="ignore")


def _sealed(response: httpx.Response) -> "Sealed":
    # Arrow is loaded by those who seal.
    from omni_rl.client.sealed import read_sealed

    return read_sealed(response)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _body(body: BaseModel) -> dict[str, Any]:
    return {"content": body.model_dump_json().encode(), "headers": {"Content-Type": JSON}}


def _step(run: str, attempt: int, step: int) -> str:
    return f"/v1/runs/{run}/attempts/{attempt}/steps/{step}"


def known() -> "Call[Known]":
    from omni_rl.client.older import read_known

    return Call("GET", "/openapi.json", read_known)


def whoami() -> Call[SessionAnswer]:
    return Call("GET", "/v1/session", _as(SessionAnswer))


def ready() -> Call[ReadyAnswer]:
    return Call("GET", "/readyz", _as(ReadyAnswer), answers=frozenset({503}))


def state() -> Call[StateAnswer]:
    return Call("GET", "/v1/state", _as(StateAnswer))


def pause(reason: str) -> Call[GateAnswer]:
    return Call("POST", "/v1/pause", _as(GateAnswer), **_body(PauseBody(reason=reason)))


def resume(run: str | None) -> Call[GateAnswer]:
    return Call("POST", "/v1/resume", _as(GateAnswer), **_body(ResumeBody(run=run)))


def create_run(body: RunBody) -> Call[RunAnswer]:
    return Call("POST", "/v1/runs", _as(RunAnswer), **_body(body))


def runs(
    limit: int, *, search: str, needs: Sequence[NeedName], sort: Literal["newest", "need"], offset: int
) -> Call[list[RunLine]]:
    params = _given(limit=limit, search=search or None, need=list(needs) or None, sort=sort, offset=offset)
    return Call("GET", "/v1/runs", _as_list(RunLine), params)


def run(name: str) -> Call[RunLine]:
    return Call("GET", f"/v1/runs/{name}", _as(RunLine))


def attempts(run: str) -> Call[list[AttemptAnswer]]:
    return Call("GET", f"/v1/runs/{run}/attempts", _as_list(AttemptAnswer))


def incidents(
    limit: int, *, is_open: bool | None, run: str | None, kind: IncidentKind | None, before: int | None
) -> Call[list[IncidentAnswer]]:
    params = _given(limit=limit, open=is_open, run=run, kind=kind, before=before)
    return Call("GET", "/v1/incidents", _as_list(IncidentAnswer), params)


def incident(number: int) -> Call[IncidentAnswer]:
    return Call("GET", f"/v1/incidents/{number}", _as(IncidentAnswer))


def acknowledge(incident: int) -> Call[IncidentAnswer]:
    return Call("POST", f"/v1/incidents/{incident}/acknowledge", _as(IncidentAnswer))


def note(incident: int, text: str) -> Call[IncidentAnswer]:
    path = f"/v1/incidents/{incident}/notes"
    return Call("POST", path, _as(IncidentAnswer), **_body(NoteBody(text=text)), repeatable=False)


def end_incident(incident: int) -> Call[IncidentAnswer]:
    return Call("POST", f"/v1/incidents/{incident}/end", _as(IncidentAnswer))


def end_run(name: str) -> Call[RunAnswer]:
    return Call("POST", f"/v1/runs/{name}/end", _as(RunAnswer))


def put_part(run: str, attempt: int, step: int, rank: int, arrow: bytes) -> Call[PartAnswer]:
    path = f"{_step(run, attempt, step)}/parts/{rank}"
    return Call("PUT", path, _as(PartAnswer), content=arrow, headers={"Content-Type": ARROW}, seconds=120)


def seal(run: str, attempt: int, step: int, body: SealBody) -> "Call[Sealed]":
    path = f"{_step(run, attempt, step)}/seal"
    headers = {"Content-Type": JSON, "Accept": ARROW}
    content = body.model_dump_json().encode()
    return Call("POST", path, _sealed, content=content, headers=headers, seconds=120)


def add_training(run: str, attempt: int, step: int, training: Mapping[str, float | None]) -> Call[StepLine]:
    body = TrainingBody(training=dict(training))
    return Call("PUT", f"{_step(run, attempt, step)}/training", _as(StepLine), **_body(body))


def steps(run: str, attempt: int | None, after: int | None, limit: int) -> Call[list[StepLine]]:
    params = _given(attempt=attempt, after=after, limit=limit)
    return Call("GET", f"/v1/runs/{run}/steps", _as_list(StepLine), params)


def timeline(
    run: str,
    *,
    attempt: int | None,
    kind: str,
    first: int | None,
    last: int | None,
    points: int,
    metrics: Sequence[str] | None,
) -> Call[TimelineAnswer]:
    params = _given(attempt=attempt, kind=kind, first=first, last=last, points=points, metric=metrics)
    return Call("GET", f"/v1/runs/{run}/timeline", _as(TimelineAnswer), params)


def step(run: str, attempt: int, step: int) -> Call[StepAnswer]:
    return Call("GET", _step(run, attempt, step), _as(StepAnswer))


def sample(run: str, attempt: int, step: int, sample: str, rank: int | None = None) -> Call[SampleAnswer]:
    path = f"{_step(run, attempt, step)}/samples/{quote(sample, safe='')}"
    return Call("GET", path, _as(SampleAnswer), params={} if rank is None else {"rank": rank})


def put_update(run: str, engine: str, number: int, body: ReceiptBody) -> Call[UpdateAnswer]:
    return Call("PUT", f"/v1/runs/{run}/engines/{engine}/updates/{number}", _as(UpdateAnswer), **_body(body))


def announce_update(run: str, number: int, body: AnnouncementBody) -> Call[UpdateAnswer]:
    return Call("PUT", f"/v1/runs/{run}/updates/{number}", _as(UpdateAnswer), **_body(body))


def updates(run: str, limit: int) -> Call[list[UpdateAnswer]]:
    return Call("GET", f"/v1/runs/{run}/updates", _as_list(UpdateAnswer), {"limit": limit})


def put_media(content: bytes, content_type: str) -> Call[MediaAnswer]:
    headers = {"Content-Type": content_type}
    return Call("PUT", f"/v1/media/{blake3(content).hexdigest()}", _as(MediaAnswer), content=content, headers=headers)


def media(digest: str) -> Call[bytes]:
    return Call("GET", f"/v1/media/{digest}", lambda response: response.content)


def sync(body: SyncBody, *, wait: bool, key: str | None, seconds: float) -> Call[SyncAnswer]:
    sent = _body(body)
    sent["headers"]["Idempotency-Key"] = key or uuid.uuid4().hex
    return Call("POST", "/v1/syncs", _as(SyncAnswer), {"wait": wait}, **sent, seconds=seconds)


def syncs(limit: int) -> Call[list[SyncAnswer]]:
    return Call("GET", "/v1/syncs", _as_list(SyncAnswer), {"limit": limit})


def sync_named(sync: str) -> Call[SyncAnswer]:
    return Call("GET", f"/v1/syncs/{sync}", _as(SyncAnswer))


def check(body: CheckBody) -> Call[CheckAnswer]:
    return Call("POST", "/v1/checks", _as(CheckAnswer), **_body(body), seconds=body.seconds + 60)


def checks(limit: int, run: str | None, attempt: int | None, step: int | None) -> Call[list[CheckAnswer]]:
    params = _given(limit=limit, run=run, attempt=attempt, step=step)
    return Call("GET", "/v1/checks", _as_list(CheckAnswer), params)


def check_numbered(check: int) -> Call[CheckAnswer]:
    return Call("GET", f"/v1/checks/{check}", _as(CheckAnswer))


def submit(parameters: GrpoParameters | PpoParameters, key: str | None) -> Call[JobAnswer]:
    body = (
        GrpoBody(kind="grpo", parameters=parameters)
        if isinstance(parameters, GrpoParameters)
        else PpoBody(kind="ppo", parameters=parameters)
    )
    sent = _body(body)
    sent["headers"]["Idempotency-Key"] = key or uuid.uuid4().hex
    return Call("POST", "/v1/jobs", _as(JobAnswer), **sent)


def jobs(limit: int) -> Call[list[JobAnswer]]:
    return Call("GET", "/v1/jobs", _as_list(JobAnswer), {"limit": limit})


def job(job: str) -> Call[JobAnswer]:
    return Call("GET", f"/v1/jobs/{job}", _as(JobAnswer))


def stop_job(job: str) -> Call[JobAnswer]:
    return Call("DELETE", f"/v1/jobs/{job}", _as(JobAnswer))


def logs(job: str) -> Call[str]:
    return Call("GET", f"/v1/jobs/{job}/logs", lambda response: response.text)


def event_page(after: int | None, limit: int) -> Call[list[EventAnswer]]:
    return Call("GET", "/v1/events/page", _as_list(EventAnswer), _given(after=after, limit=limit))


def follow(after: int | None, run: str | None) -> Call[None]:
    """The event stream; its lines are for `streams.EventReader`."""
    params, headers = _given(after=after, run=run), {"Accept": "text/event-stream"}
    return Call("GET", "/v1/events", lambda response: None, params, headers=headers)


def as_arrow(records: "StepRecords | Sequence[Mapping[str, Any]]") -> bytes:
    """An Arrow stream of records. Raises `RecordError` for values of other types; the coordinator checks the rest."""
    from omni_rl.ledger.records import StepRecords

    return records.to_arrow() if isinstance(records, StepRecords) else StepRecords.stream(records)
