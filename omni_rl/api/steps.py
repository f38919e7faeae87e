"""Defines a step's parts, its verdict, and what is stored of it."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from omni_rl.api.base import Answer, Body, Figures, Name, SeverityName, example
from omni_rl.api.runs import DriftAnswer
from omni_rl.consistency.shown import number_or_none

VERDICT_KEY = b"omni_rl.verdict"
"""The key of the verdict, as JSON, in the schema's metadata of an Arrow answer to a seal. Such an answer has a row a
sample (`sample`, `weights`)."""


class PartAnswer(Answer):
    """A part of a step that is durable."""

    run: str
    attempt: int
    step: int
    rank: int
    samples: int
    tokens: int
    digest: str = Field(description="The blake3 digest of the content, the same however it was sent.")
    stored: Literal["new", "same"]

    model_config = example(
        run="digits-grpo", attempt=1, step=12, rank=0, samples=64, tokens=2048, digest="9f2c…", stored="new"
    )


Training = Annotated[
    dict[Name, Annotated[float | None, Field(allow_inf_nan=True), AfterValidator(number_or_none)]],
    Field(
        max_length=64,
        description="The trainer's own figures: reward, loss, KL and so on; null where one is not a number, or "
        "infinite.",
        json_schema_extra={"additionalProperties": False},
    ),
]


class SealBody(Body):
    """Closes a step: no rank may add to it, and it is judged."""

    parts: int | None = Field(default=None, ge=1, le=65536, description="How many ranks must have posted.")
    training: Training = Field(default_factory=dict)

    model_config = example(parts=2, training={"reward": 0.62, "loss": -0.013})


class TrainingBody(Body):
    """What a trainer knows of a step once it has learnt from it."""

    training: Training

    model_config = example(training={"kl": 0.0021, "clipped": 0.04, "grad_norm": 0.83})


class BreachAnswer(Answer):
    """One figure over its limit; `value` is null where it is not a number."""

    kind: str = Field(description="Which tokens: those of a kind of prompt, `overall`, or `mixed_state`.")
    bucket: str = Field(default="", deprecated=True, description="`kind`, by its old name.")
    metric: str
    value: float | None
    limit: float
    severity: SeverityName

    @model_validator(mode="before")
    @classmethod
    def _by_either_name(cls, values: Any) -> Any:
        """Read `bucket` as `kind`: ledgers hold verdicts that are older than the name `kind`."""
        name = values.get("kind", values.get("bucket")) if isinstance(values, dict) else None
        return values if name is None else {**values, "kind": name, "bucket": name}


class SampleWeights(Answer):
    """Weights of one sample's tokens, in order; 0 masks. A sample is identified by the rank that posted it and its
    name."""

    rank: int = 0
    sample: str
    weights: list[float]


class WeightsAnswer(Answer):
    """The weights of the policy gradient's tokens."""

    method: str
    clipped_fraction: float = Field(description="The share of tokens whose weight is not their own ratio.")
    effective_sample_size: float = Field(
        description="Kish's effective sample size, as a share of the tokens that count."
    )

    model_config = example(method="tis", clipped_fraction=0.5, effective_sample_size=0.93)


class WorstSample(Answer):
    """A sample that is stored with its tokens, identified by the rank that posted it and its name; its error is mean
    exp(abs d), null where that is not a number."""

    rank: int = 0
    sample: str
    kind: str
    error: float | None


class Verdict(Answer):
    """The judgement of a step. `reason` says what it is judged by, in a sentence; `sentence` says why it is so, and
    what to do."""

    run: str
    attempt: int
    step: int
    severity: SeverityName
    reason: str
    cause: str | None = Field(
        default=None,
        description="The cause, as far as records show it; `unknown` where no check reproduces the difference.",
    )
    sentence: str = Field(default="", description="The cause in words, with what to do; empty where nothing is wrong.")
    evidence: list[dict[str, Any]] = Field(default_factory=list, description="What each check found, in order.")
    breaches: list[BreachAnswer]
    drift: DriftAnswer
    samples: int
    tokens: int
    figures: Figures
    worst: list[WorstSample]
    weights: WeightsAnswer | None = Field(
        default=None, description="How tokens are weighed; null: every token that counts weighs 1."
    )
    sample_weights: list[SampleWeights] | None = Field(
        default=None,
        description="Each token's weight, in the answer to a seal with `weights`. To get an Arrow stream, accept it.",
    )

    model_config = example(
        run="digits-grpo",
        attempt=1,
        step=12,
        severity="mask",
        reason="image: gen_kl_error 0.0171 is over 0.015 (mask)",
        breaches=[
            {
                "kind": "image",
                "bucket": "image",
                "metric": "gen_kl_error",
                "value": 0.0171,
                "limit": 0.015,
                "severity": "mask",
            }
        ],
        drift={"severity": "mask", "gate": "open", "pursuit": "attributing", "cause": None},
        samples=1,
        tokens=2,
        figures={"overall": {"tokens": 2, "gen_kl_error": 0.0171}, "image": {"tokens": 2, "gen_kl_error": 0.0171}},
        worst=[{"sample": "p7/0", "kind": "image", "error": 1.21}],
        weights={"method": "tis", "clipped_fraction": 0.5, "effective_sample_size": 0.93},
        sample_weights=[{"sample": "p7/0", "weights": [0.97, 2.0]}],
    )


class PositionBin(Answer):
    """Figures of the answer positions [first, last)."""

    first: int
    last: int
    figures: dict[str, float | None]


class StepAnswer(Answer):
    """One sealed step: its verdict, figures by position, and the trainer's own figures."""

    verdict: Verdict
    sealed: float = Field(description="Unix seconds.")
    weight_version: str = Field(description="The weight version that sampled the step; several are joined by a comma.")
    positions: dict[str, list[PositionBin]] = Field(description="Figures by kind of prompt and position.")
    training: dict[str, float | None]
    flips: list[int] | None = Field(description="Router flips by MoE layer; null where choices were not posted.")


class SampleAnswer(Answer):
    """A stored sample: its record in the published schema (`omni_rl.ledger.schema`), tokens and logprobs included."""

    run: str
    attempt: int
    step: int
    rank: int = 0
    sample: str
    kind: str
    error: float | None = Field(description="The sample's mean exp(abs d); null where that is not a number.")
    record: dict[str, Any]


class StepLine(Answer):
    """A sealed step in one line: figures of all its tokens."""

    run: str
    attempt: int
    step: int
    sealed: float = Field(description="Unix seconds.")
    severity: SeverityName
    samples: int
    tokens: int
    weight_version: str
    training: dict[str, float | None]
    figures: dict[str, float | None]


class TimelineAnswer(Answer):
    """Figures over steps, in buckets of `width` steps (1: each step by itself), column by column; empty buckets are
    left out.

    `low` and `high` are the least and greatest value in a bucket, so no spike is lost; null where the bucket has none.
    `severity` is the worst; `broken` counts steps with a figure that is not a number.
    """

    run: str
    attempt: int
    kind: str
    width: int
    first: list[int]
    last: list[int]
    steps: list[int]
    sealed: list[float] = Field(
        default_factory=list, description="When each bucket's last step was sealed, in Unix seconds."
    )
    severity: list[SeverityName]
    broken: list[int]
    low: dict[str, list[float | None]]
    high: dict[str, list[float | None]]

    @classmethod
    def empty(cls, run: str, kind: str) -> Self:
        """Return the timeline of a run without a step."""
        return cls(
            run=run, attempt=0, kind=kind, width=1, first=[], last=[], steps=[], severity=[], broken=[], low={}, high={}
        )

    model_config = example(
        run="digits-grpo",
        attempt=1,
        kind="image",
        width=100,
        first=[0, 100],
        last=[99, 149],
        steps=[100, 50],
        severity=["ok", "warn"],
        broken=[0, 0],
        low={"gen_kl_error": [0.0009, 0.0011]},
        high={"gen_kl_error": [0.0013, 0.0121]},
    )
