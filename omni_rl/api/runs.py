"""Defines a run: what is compared, and how strictly."""

from dataclasses import fields
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from omni_rl.api.base import Answer, Body, GateName, Name, SeverityName, Text, example
from omni_rl.api.incidents import AcknowledgementAnswer, FigureAnswer, GoodStepAnswer
from omni_rl.consistency.corrections import Correction, Method
from omni_rl.consistency.dtypes import Dtype, coarser
from omni_rl.consistency.figures import Metrics
from omni_rl.consistency.left_out import LeaveOut
from omni_rl.consistency.need import NeedName
from omni_rl.consistency.yardstick import Yardstick
from omni_rl.kinds import KINDS, MIXED_STATE, OVERALL

METRICS = tuple(field.name for field in fields(Metrics))
LIMITED = (*METRICS, "excluded_fraction", "flip_margin_max")
"""The figures that may have limits: the metrics; the share of tokens left out for router flips (a router flips where
the two sides choose other experts for a token); and the trainer's widest router margin at a flip."""


def _one_of(names: tuple[str, ...]) -> AfterValidator:
    def known(name: str) -> str:
        if name not in names:
            raise ValueError(f"no metric {name!r}; there are {', '.join(names)}")
        return name

    return AfterValidator(known)


Metric = Annotated[str, _one_of(METRICS), WithJsonSchema({"type": "string", "enum": list(METRICS)})]
Limited = Annotated[str, _one_of(LIMITED), WithJsonSchema({"type": "string", "enum": list(LIMITED)})]


BESIDE_KINDS = (OVERALL, MIXED_STATE)
"""The names that limits may be given for beside the kinds of prompt."""


Number = Annotated[float, Field(strict=True)]
"""A number; true and false are not numbers."""


class LimitValues(Body):
    """The values of a metric above which a step gets each severity; they must not fall from warn to pause."""

    warn: Number
    mask: Number
    pause: Number

    model_config = example(warn=1.05, mask=1.1, pause=1.5)


LimitChanges = dict[Name, dict[Limited, LimitValues]]
"""A run's own limits by `overall` or a kind of prompt, and by metric."""


def yardstick(
    dtype: str, changes: LimitChanges, leave_out: LeaveOut | None = None, lag: int | None = None
) -> Yardstick:
    """Return a dtype's yardstick with a run's own limits and rule of what is left out in place of the dtype's, and with
    the run's lag. Raises ConfigError, a ValueError, where limits do not rise from warn to pause."""
    values: dict[str, dict[str, dict[str, float]]] = {
        kind: {name: limit.model_dump() for name, limit in metrics.items()} for kind, metrics in changes.items()
    }
    return Yardstick.of(dtype, values, leave_out, lag)


class CorrectionBody(Body):
    """Asks for per-token weights of a step: `omni_rl.consistency.corrections` has the formulas and their sources."""

    method: Method = "tis"
    cap: Number = Field(default=2.0, ge=1)
    low: Number = Field(default=0.5, ge=0, le=1)
    high: Number = Field(default=5.0, ge=1)
    geometric_low: Number = Field(default=0.99, ge=0, le=1)
    geometric_high: Number = Field(default=1.01, ge=1)
    veto: Number | None = Field(default=None, ge=0, lt=1)
    when: Literal["mask", "always"] = Field(
        default="mask", description="Whether tokens are weighed from severity mask on, or at every step."
    )

    model_config = example(method="icepop", low=0.5, high=5.0, when="mask")

    def correction(self) -> Correction:
        return Correction(**self.model_dump(exclude={"when"}))


MAX_LAG = 256
"""The most weight versions that an engine may be behind. The coordinator compares what engines hold with as many of the
trainer's updates, and stores them."""


class RunBody(Body):
    """A run of any framework. The same run again is accepted; other content under the same name is a conflict."""

    run: Name
    model: Text = Field(description="What is trained, as a name for people.")
    dtype: Dtype = Field(
        description="The dtype in which the engine computes. The coarser dtype of both sides picks the limits."
    )
    train_dtype: Dtype | None = Field(
        default=None, description="The dtype in which the trainer computes the logprobs it posts; null: the engine's."
    )
    framework: Text = "omni-rl"
    gated: bool = Field(
        default=False,
        description="Whether this coordinator's cluster samples for the run, so that its gate stops it and syncs heal "
        "it. Otherwise verdicts advise.",
    )
    limits: LimitChanges = Field(
        default_factory=dict, description="Limits in place of the dtype's own, by kind and metric."
    )
    correction: CorrectionBody = CorrectionBody()
    kinds: tuple[Name, ...] = Field(
        default=(),
        max_length=32,
        description="Kinds of prompt of the run's own (math, code), which its records may name beside "
        f"{', '.join(KINDS)}.",
    )
    lag: int | None = Field(
        default=None,
        ge=0,
        le=MAX_LAG,
        description="How many weight versions the engine may be behind the trainer, in an asynchronous run.",
    )
    silent_after: Number | None = Field(
        default=None,
        gt=0,
        description="Seconds without a step after which the run is silent; null: the coordinator's `silent_after`.",
    )
    leave_out: LeaveOut | None = Field(default=None, description="Tokens that router ties leave out of the figures.")

    model_config = example(
        run="digits-grpo",
        model="nemotron-omni-small",
        dtype="bfloat16",
        framework="verl",
        limits={"image": {"token_mult_prob_error": {"warn": 1.04, "mask": 1.08, "pause": 1.5}}},
        correction={"method": "tis", "cap": 2.0},
    )

    @property
    def every_kind(self) -> tuple[str, ...]:
        """The kinds of prompt that the run's records may name."""
        return (*KINDS, *self.kinds)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        reserved = {*BESIDE_KINDS, *KINDS} & set(self.kinds)
        if reserved or len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"kinds has {', '.join(sorted(reserved)) or 'a name twice'}; name kinds of the run's own")
        if unknown := sorted(self.limits.keys() - {*BESIDE_KINDS, *self.every_kind}):
            raise ValueError(f"limits of {', '.join(unknown)}: no such kind; there are {', '.join(self.every_kind)}")
        self.judged_by()
        return self

    def judged_by(self) -> Yardstick:
        """Return the yardstick that the run is judged by. Raises ConfigError, a ValueError, where limits do not rise
        from warn to pause."""
        return yardstick(coarser(self.dtype, self.train_dtype), self.limits, self.leave_out, self.lag)


class DriftAnswer(Answer):
    """Says how far a run's two policies differ now (`severity`, `cause`), whether the engines may generate (`gate`),
    and what is being done about it (`pursuit`)."""

    severity: SeverityName = "ok"
    gate: GateName = "open"
    pursuit: Literal["nothing", "attributing", "resyncing", "rechecking"] = "nothing"
    cause: str | None = None

    model_config = example(severity="pause", gate="paused", pursuit="resyncing", cause="stale_weights")


Activity = Literal["waiting", "live", "silent", "ended"]
"""What a run does. waiting: no step came yet; live: steps come; silent: none came for longer than the run states;
ended: it said that it is over."""


class RunAnswer(Answer):
    """A run and where it stands."""

    run: str
    created: float = Field(description="Unix seconds.")
    config: RunBody
    drift: DriftAnswer
    attempt: int | None = Field(description="The latest attempt; null before the first step.")
    step: int | None = Field(description="The latest sealed step of that attempt.")
    sealed: float | None = Field(default=None, description="When that step was sealed, in Unix seconds.")
    activity: Activity = Field(
        default="waiting",
        description="waiting: no step came yet. live: steps come. silent: none came for longer than `silent_after`; "
        "what is said of the run is about its last step. ended: it said that it is over.",
    )
    kinds: tuple[str, ...] = Field(
        default=KINDS,
        description="The kinds of prompt that the run has figures of beside `overall`, in the order to show.",
    )


class Recent(Answer):
    """A run's newest steps, oldest first; null where a value is not known, or not a number."""

    step: tuple[int, ...] = ()
    reward: tuple[float | None, ...] = Field(default=(), description="The trainer's figure `reward`.")
    drift: tuple[float | None, ...] = Field(default=(), description="`logprob_abs_diff_mean` of all tokens.")


class RunLine(RunAnswer):
    """A run in one line of the first screen."""

    need: NeedName | None = Field(
        default=None,
        description="How much the run needs a person, the worst of its state and its open incidents. unknown: the "
        "coordinator cannot see the cluster that samples for it. unjudged: nothing in its latest step was judged. Null "
        "from a coordinator of version 0.1, which does not say.",
    )
    cause: str | None = Field(default=None, description="The cause of its worst open incident, or of its drift.")
    figure: FigureAnswer | None = Field(
        default=None, description="The worst of the figures that are over their limits."
    )
    good: GoodStepAnswer | None = Field(default=None, description="The run's last step that was ok.")
    recent: Recent = Recent()
    incident: int | None = Field(default=None, description="The number of the run's worst open incident.")
    acknowledged: AcknowledgementAnswer | None = Field(default=None, description="Who has that incident in hand.")


class AttemptAnswer(Answer):
    """An attempt: one start of a run."""

    attempt: int
    started: float = Field(description="Unix seconds.")
    first: int | None = Field(description="The attempt's first sealed step; null before there is one.")
    last: int | None = Field(description="The attempt's last sealed step.")
