"""Defines jobs: fixed entry points, validated parameters. A client never names a command, a package or an
environment."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from omni_rl.api.base import MAX_INT, Answer, Body, Name, example
from omni_rl.api.runs import CorrectionBody, LimitChanges, yardstick

JobKind = Literal["grpo", "ppo"]
JobStatus = Literal["pending", "running", "stopped", "succeeded", "failed"]
ENDED: frozenset[JobStatus] = frozenset({"stopped", "succeeded", "failed"})
"""The statuses in which a job never changes again."""


class PolicyGradientParameters(Body):
    """The parameters that GRPO and PPO have in common. `task` is one of the operator's (deploy/jobs)."""

    run: Name
    task: Name = "digits"
    dtype: Literal["float32", "bfloat16"] = "float32"
    steps: int = Field(default=50, ge=1, le=1_000_000)
    prompts: int = Field(default=16, ge=1, le=65536, description="The prompts of a step.")
    max_tokens: int = Field(default=32, ge=1, le=1_048_576)
    temperature: float = Field(default=1.0, gt=0, le=10)
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    learning_rate: float = Field(default=1e-3, ge=0, le=1)
    learning_rate_warmup: int = Field(
        default=0, ge=0, le=MAX_INT, description="The steps over which the learning rate rises, linearly."
    )
    learning_rate_decay: float = Field(
        default=0.0, ge=0, le=1, description="The share that the learning rate falls by, linearly, over all steps."
    )
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    clip_high: float = Field(default=0.28, gt=0)
    kl: float = Field(
        default=0.0, ge=0, description="The weight of the k3 estimate of the divergence from the reference."
    )
    correction: CorrectionBody = CorrectionBody()
    limits: LimitChanges = Field(
        default_factory=dict, description="Limits in place of the dtype's own, by kind and metric, as a run has them."
    )
    evaluate_every: int = Field(
        default=0,
        ge=0,
        le=MAX_INT,
        description="Steps between two measurements on held-out prompts; the last step has one too.",
    )
    evaluate_answers: int = Field(default=1, ge=1, le=1024, description="The answers to each held-out prompt.")
    save_every: int = Field(default=0, ge=0, le=MAX_INT, description="Steps between two saved states to resume from.")
    max_staleness: int = Field(default=0, ge=0, le=64)
    router_replay: bool = Field(
        default=False, description="Learn through the experts that the engine used (R3), and measure router flips."
    )
    resume: bool = Field(default=False, description="Go on from the last saved step, as a new attempt.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        yardstick(self.dtype, self.limits)
        return self


class GrpoParameters(PolicyGradientParameters):
    """Parameters of GRPO, which compares the answers to each prompt among themselves."""

    group: int = Field(default=8, ge=2, le=1024, description="The answers to a prompt.")
    normalise: bool = Field(default=True, description="Divide advantages by the group's standard deviation.")
    leave_one_out: bool = False
    aggregation: Literal["token", "sequence"] = "token"
    mask_truncated: bool = Field(default=False, description="Learn nothing from answers that max_tokens cut off.")

    model_config = example(run="digits-grpo", task="digits", steps=50, prompts=16, group=8, learning_rate=1e-3)


class PpoParameters(PolicyGradientParameters):
    """Parameters of PPO, with a value head on the training copy, and generalised advantages."""

    epochs: int = Field(default=1, ge=1, le=64)
    minibatches: int = Field(default=1, ge=1, le=1024)
    gamma: float = Field(default=1.0, ge=0, le=1)
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    value_clip: float = Field(default=0.2, gt=0)
    value_weight: float = Field(default=0.5, ge=0)

    model_config = example(run="digits-ppo", task="digits", steps=50, prompts=64, epochs=2)


class GrpoBody(Body):
    """Submits a GRPO job."""

    kind: Literal["grpo"]
    parameters: GrpoParameters


class PpoBody(Body):
    """Submits a PPO job."""

    kind: Literal["ppo"]
    parameters: PpoParameters


JobBody = Annotated[GrpoBody | PpoBody, Field(discriminator="kind")]


class JobAnswer(Answer):
    """A submitted job; times are Unix seconds."""

    job: str
    kind: JobKind
    status: JobStatus
    message: str = ""
    submitted: float | None = None
    ended: float | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)

    model_config = example(
        job="grpo-5b2e91c04d7a",
        kind="grpo",
        status="running",
        submitted=1795500000.0,
        parameters={"run": "digits-grpo", "steps": 50},
    )
