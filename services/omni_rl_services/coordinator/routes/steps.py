"""Routes for steps, which are posted in parts, sealed once, and read for ever."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response

from omni_rl.api.base import MAX_INT, Name
from omni_rl.api.runs import METRICS, Metric
from omni_rl.api.steps import (
    PartAnswer,
    SampleAnswer,
    SealBody,
    StepAnswer,
    StepLine,
    TimelineAnswer,
    TrainingBody,
    Verdict,
)
from omni_rl.errors import NotFoundError, TooLargeError, UnsupportedMediaTypeError
from omni_rl.kinds import OVERALL
from omni_rl.ledger.types import StepKey
from omni_rl_services.coordinator.content_types import ARROW, JSON, media_type
from omni_rl_services.coordinator.deps import CoordinatorDep, Reader, Syncer
from omni_rl_services.coordinator.judging import sample_weights, weights_stream
from omni_rl_services.coordinator.params import AttemptPath, LimitQuery, RankPath, RunPath, SamplePath, StepPath
from omni_rl_services.coordinator.problems import documented
from omni_rl_services.coordinator.views import sample_answer, step_answer, step_line, timeline_answer

router = APIRouter(prefix="/v1/runs/{run}", tags=["steps"])
STEP = "/attempts/{attempt}/steps/{step}"
MAX_JSON_WEIGHTS = 500_000
"""The most tokens whose weights are spelled out as JSON; for more, ask for an Arrow stream."""
Accept = Annotated[
    str,
    Header(description=f"{ARROW}: a row for each sample, with its weights; the verdict is in the schema's metadata."),
]
OfAttempt = Annotated[int | None, Query(ge=0, le=MAX_INT, description="The attempt; without it, the latest.")]

RECORDS = {
    JSON: {
        "schema": {"$ref": "#/components/schemas/Records"},
        "example": {
            "schema": "omni_rl.step/1",
            "records": [
                {
                    "sample": "p7/0",
                    "kind": "image",
                    "prompt_tokens": 83,
                    "ids": [41, 7],
                    "rollout_logprobs": [-0.31, -2.2],
                    "train_logprobs": [-0.3, -2.35],
                }
            ],
        },
    },
    ARROW: {"schema": {"type": "string", "format": "binary"}},
}


@router.put(
    STEP + "/parts/{rank}",
    responses=documented(401, 403, 404, 409, 413, 415, 422, 503),
    openapi_extra={"requestBody": {"required": True, "content": RECORDS}},
)
async def put_part(
    run: RunPath,
    attempt: AttemptPath,
    step: StepPath,
    rank: RankPath,
    request: Request,
    coordinator: CoordinatorDep,
    caller: Syncer,
    content_type: Annotated[str, Header(include_in_schema=False)] = "",
) -> PartAnswer:
    """Post one rank's records of a step, as an Arrow stream of the published schema or as JSON. They are durable when
    this answers.

    Posting the same content again changes nothing, however it is laid out; other content is a conflict.
    """
    kind = media_type(content_type)
    if kind not in (ARROW, JSON):
        raise UnsupportedMediaTypeError(f"records come as {ARROW} or {JSON}, not as {content_type or 'nothing'}")
    of = await coordinator.run(run)
    body = await request.body()
    return await coordinator.steps.put(of, StepKey(run, attempt, step), rank, body, arrow=kind == ARROW)


@router.post(
    STEP + "/seal",
    response_model=Verdict,
    responses={
        200: {"content": {ARROW: {"schema": {"type": "string", "format": "binary"}}}},
        **documented(401, 403, 404, 409, 413, 422, 503),
    },
)
async def seal(
    run: RunPath,
    attempt: AttemptPath,
    step: StepPath,
    body: SealBody,
    coordinator: CoordinatorDep,
    caller: Syncer,
    accept: Annotated[
        str, Header(description=f"{ARROW}: a row for each sample, with its weights; the verdict is in the metadata.")
    ] = JSON,
) -> Response:
    """Close a step: no rank may add to it, and it is judged. Sealing it again gives the same verdict.

    From severity `mask` on (or always, if the run says so) the verdict comes with a weight for each token.
    """
    sealed = await coordinator.steps.seal(await coordinator.run(run), StepKey(run, attempt, step), body)
    if ARROW in accept:
        text = sealed.verdict.model_dump_json()
        content = await coordinator.steps.workers.run(
            sealed.columns.nbytes, weights_stream, sealed.columns, sealed.ranks, sealed.weights, text
        )
        return Response(content, media_type=ARROW)
    verdict = sealed.verdict
    if sealed.weights is not None:
        if sealed.columns.tokens > MAX_JSON_WEIGHTS:
            raise TooLargeError(
                f"weights of {sealed.columns.tokens:,} tokens are too many for JSON; the step is sealed: ask again "
                f"with Accept: {ARROW}"
            )
        each = await coordinator.steps.workers.run(
            sealed.columns.nbytes, sample_weights, sealed.columns, sealed.ranks, sealed.weights
        )
        verdict = verdict.model_copy(update={"sample_weights": each})
    return Response(verdict.model_dump_json(exclude_none=False), media_type=JSON)


@router.put(STEP + "/training", responses=documented(401, 403, 404, 413, 422, 503))
async def add_training(
    run: RunPath,
    attempt: AttemptPath,
    step: StepPath,
    body: TrainingBody,
    coordinator: CoordinatorDep,
    caller: Syncer,
) -> StepLine:
    """Add the trainer's figures of a sealed step, known once it has learnt from it, to those that the step was sealed
    with."""
    key = StepKey(run, attempt, step)
    await coordinator.steps.learnt(await coordinator.run(run), key, body.training)
    await coordinator.events.publish("training", run, attempt=attempt, step=step)
    return step_line((await coordinator.store.step(key)).row)


@router.get("/steps", responses=documented(401, 403, 404, 422, 503))
async def lines(
    run: RunPath,
    coordinator: CoordinatorDep,
    caller: Reader,
    attempt: OfAttempt = None,
    after: Annotated[int, Query(ge=-1, le=MAX_INT, description="Only steps after this number.")] = -1,
    limit: LimitQuery = 1000,
    last: Annotated[int | None, Query(ge=0, le=MAX_INT, description="With `points`: to this step, inclusive.")] = None,
    points: Annotated[
        int | None, Query(ge=1, le=4096, description="Instead of `limit`: about so many, at even distances.")
    ] = None,
) -> list[StepLine]:
    """Return sealed steps, in order, a line for each."""
    of = (await coordinator.run(run)).attempt(attempt)
    if of is None:
        return []
    if points is not None:
        return [
            step_line(row)
            for row in await coordinator.store.steps_spread(run, of, after=after, last=last, points=points)
        ]
    return [step_line(row) for row in await coordinator.store.steps(run, of, after=after, limit=limit)]


@router.get("/timeline", responses=documented(401, 403, 404, 422, 503))
async def timeline(
    run: RunPath,
    coordinator: CoordinatorDep,
    caller: Reader,
    attempt: OfAttempt = None,
    kind: Annotated[Name, Query(description="A kind of the run's prompts, or all.")] = OVERALL,
    first: Annotated[int | None, Query(ge=0, le=MAX_INT, description="From this step on.")] = None,
    last: Annotated[int | None, Query(ge=0, le=MAX_INT, description="To this step, inclusive.")] = None,
    points: Annotated[int, Query(ge=1, le=4096, description="At most so many buckets.")] = 1000,
    metric: Annotated[
        list[Metric] | None, Query(max_length=len(METRICS), description="These metrics; without it, all.")
    ] = None,
) -> TimelineAnswer:
    """Return figures over steps, in fewer points than steps but with every spike."""
    found = await coordinator.run(run)
    if kind not in (OVERALL, *found.body.every_kind):
        raise NotFoundError(f"run {run} has no prompts of kind {kind}: {', '.join(found.body.every_kind)}")
    of = found.attempt(attempt)
    if of is None:
        return TimelineAnswer.empty(run, kind)
    steps = await coordinator.store.timeline(
        run, of, metric or METRICS, kind=kind, first=first, last=last, points=points
    )
    return timeline_answer(run, of, steps)


@router.get(STEP, responses=documented(401, 403, 404, 422, 503))
async def one(
    run: RunPath, attempt: AttemptPath, step: StepPath, coordinator: CoordinatorDep, caller: Reader
) -> StepAnswer:
    """Return one sealed step: its verdict, figures by position and worst samples."""
    await coordinator.run(run)
    return step_answer(await coordinator.store.step(StepKey(run, attempt, step)))


@router.get(STEP + "/samples/{sample:path}", responses=documented(401, 403, 404, 422, 503))
async def sample(
    run: RunPath,
    attempt: AttemptPath,
    step: StepPath,
    sample: SamplePath,
    coordinator: CoordinatorDep,
    caller: Reader,
    rank: Annotated[
        int | None,
        Query(ge=0, le=MAX_INT, description="The rank that posted it; without it, the sample that is furthest apart."),
    ] = None,
) -> SampleAnswer:
    """Return a stored sample's tokens, logprobs and media."""
    await coordinator.run(run)
    return sample_answer(await coordinator.store.sample(StepKey(run, attempt, step), sample, rank))
