"""A step's parts, its verdict, and what is kept of it."""

from typing import Any, Literal

from pydantic import Field

from omni_rl.api.base import Answer, Body, Figures, Name, SeverityName, example
from omni_rl.api.runs import DriftAnswer


VERDICT_KEY = b"omni_rl.verdict"
"""An Arrow answer to a seal has a row a sample (`sample`, `weights`) and the verdict as JSON in its schema's metadata,
under this key."""


class PartAnswer(Answer):
    """A part that is durable."""

    run: str
    attempt: int
    step: int
    rank: int
    samples: int
    tokens: int
    digest: str = Field(description="blake3 of the content, equal however it was sent.")
    stored: Literal["new", "same"]

    model_config = example(
        run="digits-grpo", attempt=1, step=12, rank=0, samples=64, tokens=2048, digest="9f2c…", stored="new"
    )


class SealBody(Body):
    """Closes a step: no rank may add to it, and it is judged."""

    parts: int | None = Field(default=None, ge=1, le=65536, description="How many ranks must have posted.")
    training: dict[Name, float] = Field(
        default_factory=dict, max_length=64, description="The trainer's own figures: reward, loss, KL and so on."
    )

    model_config = example(parts=2, training={"reward": 0.62, "loss": -0.013})


class BreachAnswer(Answer):
    """One figure over its limit; `value` is null where it is not a number."""

    bucket: str
    metric: str
    value: float | None
    limit: float
    severity: SeverityName


class SampleWeights(Answer):
    """Weights of one sample's tokens, in order; 0 masks."""

    sample: str
    weights: list[float]


class WeightsAnswer(Answer):
    """Of the policy gradient's tokens. `clipped_fraction`: tokens that got other than their own ratio."""

    method: str
    clipped_fraction: float
    effective_sample_size: float | None = Field(description="Kish's, as a share of the tokens that count.")
    samples: list[SampleWeights]


class WorstSample(Answer):
    """A sample that is kept with its tokens; its error is mean exp(abs d), null where that is not a number."""

    sample: str
    kind: str
    error: float | None


class Verdict(Answer):
    """What a step amounts to. `reason` is the worst breach in a sentence."""

    run: str
    attempt: int
    step: int
    severity: SeverityName
    reason: str
    breaches: list[BreachAnswer]
    drift: DriftAnswer
    samples: int
    tokens: int
    figures: Figures
    worst: list[WorstSample]
    weights: WeightsAnswer | None = Field(default=None, description="Null: every token that counts weighs 1.")

    model_config = example(
        run="digits-grpo",
        attempt=1,
        step=12,
        severity="mask",
        reason="image: gen_kl_error 0.0171 is over 0.015 (mask)",
        breaches=[{"bucket": "image", "metric": "gen_kl_error", "value": 0.0171, "limit": 0.015, "severity": "mask"}],
        drift={"severity": "mask", "gate": "open", "pursuit": "attributing", "cause": None},
        samples=1,
        tokens=2,
        figures={"overall": {"tokens": 2, "gen_kl_error": 0.0171}, "image": {"tokens": 2, "gen_kl_error": 0.0171}},
        worst=[{"sample": "p7/0", "kind": "image", "error": 1.21}],
        weights={
            "method": "tis",
            "clipped_fraction": 0.5,
            "effective_sample_size": 0.93,
            "samples": [{"sample": "p7/0", "weights": [0.97, 2.0]}],
        },
    )


class StepAnswer(Answer):
    """One sealed step: its verdict, figures by position, and the trainer's own figures."""

    verdict: Verdict
    sealed: float = Field(description="Unix seconds.")
    positions: dict[str, list[dict[str, Any]]] = Field(description="Bucket to bins of answer positions to figures.")
    training: dict[str, float]


class SampleAnswer(Answer):
    """A kept sample: its record in the published schema (`omni_rl.ledger.schema`), tokens and logprobs included."""

    run: str
    attempt: int
    step: int
    sample: str
    kind: str
    error: float | None = Field(description="mean exp(abs d); null where that is not a number.")
    record: dict[str, Any]


class Timeline(Answer):
    """Figures over steps, column by column. Where `decimated`, points are chosen so that no extreme is lost."""

    run: str
    attempts: list[int]
    steps: list[int]
    severity: list[SeverityName]
    series: dict[str, dict[str, list[float | None]]] = Field(description="Bucket to metric to values.")
    decimated: bool
