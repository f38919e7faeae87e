"""The coordinator's routes, one function each: the methods of both clients send what these return."""

import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import httpx
from blake3 import blake3

from omni_rl.api.events import EventAnswer
from omni_rl.api.incidents import IncidentAnswer, NoteBody
from omni_rl.api.jobs import GrpoBody, GrpoParameters, JobAnswer, PpoBody, PpoParameters
from omni_rl.api.media import MediaAnswer
from omni_rl.api.runs import AttemptAnswer, RunAnswer, RunBody, RunLine
from omni_rl.api.state import GateAnswer, PauseBody, ReadyAnswer, ResumeBody, SessionAnswer, StateAnswer
from omni_rl.api.steps import PartAnswer, SampleAnswer, SealBody, StepAnswer, StepLine, TimelineAnswer, TrainingBody
from omni_rl.api.syncs import CheckAnswer, CheckBody, SyncAnswer, SyncBody
from omni_rl.api.updates import AnnouncementBody, ReceiptBody, UpdateAnswer
from omni_rl.client.call import JSON, Call, as_json, as_list, as_model, given
from omni_rl.consistency.incidents import IncidentKind
from omni_rl.consistency.need import NeedName
from omni_rl.kinds import OVERALL

if TYPE_CHECKING:
    from omni_rl.client.sealed import Sealed
    from omni_rl.ledger.records import StepRecords

FROM_TRAINER = SyncBody()
PROBE = CheckBody()
STREAM_TIMEOUT = httpx.Timeout(60.0)
"""The coordinator sends a sign of life every 15 s."""
STREAM_PAUSE = 1.0
"""The seconds before a stream that its server has ended is asked for again."""
ARROW = "application/vnd.apache.arrow.stream"


def _step(run: str, attempt: int, step: int) -> str:
    return f"/v1/runs/{run}/attempts/{attempt}/steps/{step}"


def whoami() -> Call[SessionAnswer]:
    """Return whose token this is, and its scope."""
    return Call("GET", "/v1/session", as_model(SessionAnswer))


def ready() -> Call[ReadyAnswer]:
    """Return whether the ledger answers, and every actor where there is a cluster; nothing is raised if they do not."""
    return Call("GET", "/readyz", as_model(ReadyAnswer), answers=frozenset({503}))


def state() -> Call[StateAnswer]:
    """Return the gate, the cluster, the runs, the sync under way and the open alarms."""
    return Call("GET", "/v1/state", as_model(StateAnswer))


def pause(reason: str) -> Call[GateAnswer]:
    """Stop generation."""
    return Call("POST", "/v1/pause", as_model(GateAnswer), **as_json(PauseBody(reason=reason)))


def resume(run: str | None = None) -> Call[GateAnswer]:
    """Let generation go on, and vouch for it: for the run of that name, if one is given."""
    return Call("POST", "/v1/resume", as_model(GateAnswer), **as_json(ResumeBody(run=run)))


def create_run(body: RunBody) -> Call[RunAnswer]:
    """Make a run; the same again changes nothing."""
    return Call("POST", "/v1/runs", as_model(RunAnswer), **as_json(body))


def runs(
    limit: int = 100,
    *,
    search: str = "",
    needs: Sequence[NeedName] = (),
    sort: Literal["newest", "need"] = "newest",
    offset: int = 0,
) -> Call[list[RunLine]]:
    """Return runs whose names have `search` in them, only those of the given `needs` if there are any, without the
    first `offset`."""
    params = given(limit=limit, search=search or None, need=list(needs) or None, sort=sort, offset=offset)
    return Call("GET", "/v1/runs", as_list(RunLine), params)


def run(name: str) -> Call[RunLine]:
    """Return one run and where it stands."""
    return Call("GET", f"/v1/runs/{name}", as_model(RunLine))


def attempts(run: str) -> Call[list[AttemptAnswer]]:
    """Return each start of a run, oldest first."""
    return Call("GET", f"/v1/runs/{run}/attempts", as_list(AttemptAnswer))


def incidents(
    limit: int = 100,
    *,
    is_open: bool | None = None,
    run: str | None = None,
    kind: IncidentKind | None = None,
    before: int | None = None,
) -> Call[list[IncidentAnswer]]:
    """Return incidents, the newest first: all, or those that are open (or not), of a run, of a kind, with numbers
    below `before`."""
    params = given(limit=limit, open=is_open, run=run, kind=kind, before=before)
    return Call("GET", "/v1/incidents", as_list(IncidentAnswer), params)


def incident(number: int) -> Call[IncidentAnswer]:
    """Return one incident."""
    return Call("GET", f"/v1/incidents/{number}", as_model(IncidentAnswer))


def acknowledge(incident: int) -> Call[IncidentAnswer]:
    """Say that somebody has an incident in hand."""
    return Call("POST", f"/v1/incidents/{incident}/acknowledge", as_model(IncidentAnswer))


def note(incident: int, text: str) -> Call[IncidentAnswer]:
    """Add a note to an incident."""
    path = f"/v1/incidents/{incident}/notes"
    return Call("POST", path, as_model(IncidentAnswer), **as_json(NoteBody(text=text)), repeatable=False)


def end_incident(incident: int) -> Call[IncidentAnswer]:
    """Say that an incident is over; its run is judged afresh."""
    return Call("POST", f"/v1/incidents/{incident}/end", as_model(IncidentAnswer))


def end_run(name: str) -> Call[RunAnswer]:
    """Say that a run is over, so that it is not called silent when no step comes."""
    return Call("POST", f"/v1/runs/{name}/end", as_model(RunAnswer))


def put_part(
    run: str, attempt: int, step: int, rank: int, records: "StepRecords | Sequence[Mapping[str, Any]]"
) -> Call[PartAnswer]:
    """Post one rank's records of a step; the same again changes nothing. They are durable when this returns."""
    path, arrow = f"{_step(run, attempt, step)}/parts/{rank}", _as_arrow(records)
    return Call("PUT", path, as_model(PartAnswer), content=arrow, headers={"Content-Type": ARROW}, seconds=120)


def seal(
    run: str,
    attempt: int,
    step: int,
    *,
    parts: int | None = None,
    training: Mapping[str, float | None] | None = None,
) -> "Call[Sealed]":
    """Close a step and judge it. `parts`: how many ranks must have posted; `training`: the trainer's figures."""
    path = f"{_step(run, attempt, step)}/seal"
    headers = {"Content-Type": JSON, "Accept": ARROW}
    content = SealBody(parts=parts, training=dict(training or {})).model_dump_json().encode()
    return Call("POST", path, _sealed, content=content, headers=headers, seconds=120)


def add_training(run: str, attempt: int, step: int, training: Mapping[str, float | None]) -> Call[StepLine]:
    """Add figures that the trainer has once it has learnt from a sealed step to those it was sealed with."""
    body = TrainingBody(training=dict(training))
    return Call("PUT", f"{_step(run, attempt, step)}/training", as_model(StepLine), **as_json(body))


def steps(run: str, *, attempt: int | None = None, after: int | None = None, limit: int = 1000) -> Call[list[StepLine]]:
    """Return sealed steps after number `after`, in order, of the latest attempt unless one is named."""
    params = given(attempt=attempt, after=after, limit=limit)
    return Call("GET", f"/v1/runs/{run}/steps", as_list(StepLine), params)


def timeline(
    run: str,
    *,
    attempt: int | None = None,
    kind: str = OVERALL,
    first: int | None = None,
    last: int | None = None,
    points: int = 1000,
    metrics: Sequence[str] | None = None,
) -> Call[TimelineAnswer]:
    """Return figures over at most `points` stretches of steps, with the extremes of each: every metric, or those that
    are named."""
    params = given(attempt=attempt, kind=kind, first=first, last=last, points=points, metric=metrics)
    return Call("GET", f"/v1/runs/{run}/timeline", as_model(TimelineAnswer), params)


def step(run: str, attempt: int, step: int) -> Call[StepAnswer]:
    """Return one sealed step, whole."""
    return Call("GET", _step(run, attempt, step), as_model(StepAnswer))


def sample(run: str, attempt: int, step: int, sample: str, *, rank: int | None = None) -> Call[SampleAnswer]:
    """Return a kept sample's tokens and the digests of its media; of several ranks' samples of that name, the one that
    is furthest apart."""
    path = f"{_step(run, attempt, step)}/samples/{quote(sample, safe='')}"
    return Call("GET", path, as_model(SampleAnswer), params={} if rank is None else {"rank": rank})


def put_update(run: str, engine: str, number: int, body: ReceiptBody) -> Call[UpdateAnswer]:
    """Tell what one worker of an engine holds after a weight update; the same again changes nothing."""
    return Call("PUT", f"/v1/runs/{run}/engines/{engine}/updates/{number}", as_model(UpdateAnswer), **as_json(body))


def announce_update(run: str, number: int, body: AnnouncementBody) -> Call[UpdateAnswer]:
    """Tell what the trainer's weights are as of its update `number`; the same again changes nothing."""
    return Call("PUT", f"/v1/runs/{run}/updates/{number}", as_model(UpdateAnswer), **as_json(body))


def updates(run: str, limit: int = 100) -> Call[list[UpdateAnswer]]:
    """Return weight updates as engines and the trainer told of them, the newest first."""
    return Call("GET", f"/v1/runs/{run}/updates", as_list(UpdateAnswer), {"limit": limit})


def put_media(content: bytes, content_type: str) -> Call[MediaAnswer]:
    """Keep a picture, sound or video, by the digest that records name it with."""
    headers = {"Content-Type": content_type}
    return Call(
        "PUT", f"/v1/media/{blake3(content).hexdigest()}", as_model(MediaAnswer), content=content, headers=headers
    )


def media(digest: str) -> Call[bytes]:
    """Return the bytes of a picture, sound or video."""
    return Call("GET", f"/v1/media/{digest}", lambda response: response.content)


def sync(
    body: SyncBody = FROM_TRAINER, *, wait: bool = True, key: str | None = None, seconds: float = 600.0
) -> Call[SyncAnswer]:
    """Bring weights to every replica, and `wait` for the result, at most `seconds`. The same key is the same sync."""
    sent = as_json(body)
    sent["headers"]["Idempotency-Key"] = key or uuid.uuid4().hex
    return Call("POST", "/v1/syncs", as_model(SyncAnswer), {"wait": wait}, **sent, seconds=seconds)


def syncs(limit: int = 100) -> Call[list[SyncAnswer]]:
    """Return syncs, the newest first."""
    return Call("GET", "/v1/syncs", as_list(SyncAnswer), {"limit": limit})


def sync_named(sync: str) -> Call[SyncAnswer]:
    """Return one sync by its name."""
    return Call("GET", f"/v1/syncs/{sync}", as_model(SyncAnswer))


def check(body: CheckBody = PROBE) -> Call[CheckAnswer]:
    """Compare both policies now."""
    return Call("POST", "/v1/checks", as_model(CheckAnswer), **as_json(body), seconds=body.seconds + 60)


def checks(
    limit: int = 100, *, run: str | None = None, attempt: int | None = None, step: int | None = None
) -> Call[list[CheckAnswer]]:
    """Return checks that were made, the newest first: all, or those about the steps of a run, of an attempt, or about
    one step. They have their evidence alone: `check_numbered` has figures and legs too."""
    params = given(limit=limit, run=run, attempt=attempt, step=step)
    return Call("GET", "/v1/checks", as_list(CheckAnswer), params)


def check_numbered(check: int) -> Call[CheckAnswer]:
    """Return one check, whole."""
    return Call("GET", f"/v1/checks/{check}", as_model(CheckAnswer))


def submit(parameters: GrpoParameters | PpoParameters, *, key: str | None = None) -> Call[JobAnswer]:
    """Submit a job. The same key is the same job."""
    body = (
        GrpoBody(kind="grpo", parameters=parameters)
        if isinstance(parameters, GrpoParameters)
        else PpoBody(kind="ppo", parameters=parameters)
    )
    sent = as_json(body)
    sent["headers"]["Idempotency-Key"] = key or uuid.uuid4().hex
    return Call("POST", "/v1/jobs", as_model(JobAnswer), **sent)


def jobs(limit: int = 100) -> Call[list[JobAnswer]]:
    """Return jobs, the newest first."""
    return Call("GET", "/v1/jobs", as_list(JobAnswer), {"limit": limit})


def job(job: str) -> Call[JobAnswer]:
    """Return one job."""
    return Call("GET", f"/v1/jobs/{job}", as_model(JobAnswer))


def stop_job(job: str) -> Call[JobAnswer]:
    """Stop a job."""
    return Call("DELETE", f"/v1/jobs/{job}", as_model(JobAnswer))


def logs(job: str) -> Call[str]:
    """Return what a job has written."""
    return Call("GET", f"/v1/jobs/{job}/logs", lambda response: response.text)


def event_page(after: int | None = None, limit: int = 512) -> Call[list[EventAnswer]]:
    """Return the events after a number, or the last ones."""
    return Call("GET", "/v1/events/page", as_list(EventAnswer), given(after=after, limit=limit))


def follow(after: int | None, run: str | None) -> Call[None]:
    """The event stream; its lines are for `streams.EventReader`."""
    params, headers = given(after=after, run=run), {"Accept": "text/event-stream"}
    return Call("GET", "/v1/events", lambda response: None, params, headers=headers)


def _as_arrow(records: "StepRecords | Sequence[Mapping[str, Any]]") -> bytes:
    """Return records as an Arrow stream. Raises `RecordError` for values of a wrong type."""
    from omni_rl.ledger.records import StepRecords

    return records.to_arrow() if isinstance(records, StepRecords) else StepRecords.stream(records)


def _sealed(response: httpx.Response) -> "Sealed":
    # Arrow is loaded by those who seal.
    from omni_rl.client.sealed import read_sealed

    return read_sealed(response)
