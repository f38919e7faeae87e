"""Defines incidents: what a person has to look at, from its first sign to its end."""

from typing import Annotated, Any

from pydantic import Field, StringConstraints

from omni_rl.api.base import NO_NUL, Answer, Body, SeverityName, example
from omni_rl.consistency.incidents import IncidentKind


class FigureAnswer(Answer):
    """A figure and the limit that it exceeds."""

    kind: str = Field(description="Of prompt, or `overall`.")
    metric: str
    value: float | None = Field(description="Null where it is not a number, or infinite.")
    limit: float


class GoodStepAnswer(Answer):
    """The last step whose severity was ok, of a run or before an incident."""

    attempt: int
    step: int
    weights: str = Field(description="The version of the weights that sampled it; empty where nobody said.")


class ActionAnswer(Answer):
    """What was done about an incident."""

    at: float = Field(description="Unix seconds.")
    what: str


class AcknowledgementAnswer(Answer):
    """Who has taken an incident in hand, and since when."""

    by: str
    at: float = Field(description="Unix seconds.")


class NoteAnswer(Answer):
    """A note that somebody added to an incident."""

    by: str
    at: float = Field(description="Unix seconds.")
    text: str


class NoteBody(Body):
    """A note to add to an incident."""

    text: Annotated[str, StringConstraints(pattern=NO_NUL, min_length=1, max_length=4096)]

    model_config = example(text="the node's driver was upgraded this morning; I look at it")


class IncidentAnswer(Answer):
    """Something that a person has to look at. A problem is one incident from its first sign to its end: later signs are
    added to the incident, and it is reported once."""

    incident: int
    run: str | None = Field(description="The run that it is about; null where it is about none.")
    kind: IncidentKind = Field(
        description="drift: the two policies differ. update: an engine did not take an update of weights, or has what "
        "older ones computed. sync: a sync of weights failed, or is not proven. engine: an engine, the trainer or the "
        "cluster does not answer, or a trainer was replaced. silence: the run's steps stopped coming."
    )
    what: str = Field(description="The story in a few sentences.")
    remedy: str = Field(description="What to do about it.")
    guide: str = Field(description="Where the documents say more: a path of the project with an anchor.")
    severity: SeverityName = Field(description="The worst severity that it reached; pause: somebody is needed now.")
    cause: str | None
    attempt: int | None = Field(description="The attempt of the step at which it opened.")
    step: int | None = Field(description="The step at which it opened.")
    figure: FigureAnswer | None = Field(description="The worst figure so far.")
    good: GoodStepAnswer | None = Field(description="The last step before it that was ok.")
    evidence: dict[str, Any] = Field(description="What was found, by the name of the check.")
    actions: list[ActionAnswer] = Field(description="What was done, in order.")
    acknowledged: AcknowledgementAnswer | None
    notes: list[NoteAnswer]
    opened: float = Field(description="Unix seconds.")
    changed: float = Field(description="When it last grew, was acknowledged, got a note or ended, in Unix seconds.")
    ended: float | None = Field(description="When it was over, in Unix seconds; null while it is not.")

    model_config = example(
        incident=7,
        run="digits-grpo",
        kind="drift",
        what="Step 6, image only: logprob_abs_diff_mean 0.9, limit 0.4; clean to step 5. The engine leaves the float32 "
        "reference, the trainer does not; first module layers.1.mixer.",
        remedy="Compare that module's dtype and options on both sides; report it.",
        guide="docs/operating.md#kernel",
        severity="pause",
        cause="kernel",
        attempt=1,
        step=6,
        figure={"kind": "image", "metric": "logprob_abs_diff_mean", "value": 0.9, "limit": 0.4},
        good={"attempt": 1, "step": 5, "weights": "digits/1/5/9f2c3c1d"},
        evidence={},
        actions=[{"at": 1795500001.0, "what": "generation is stopped until a person resumes it"}],
        acknowledged={"by": "ann", "at": 1795500060.0},
        notes=[{"by": "ann", "at": 1795500090.0, "text": "I look at it"}],
        opened=1795500000.0,
        changed=1795500090.0,
        ended=None,
    )
