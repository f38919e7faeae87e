"""Defines the settings of a trainer group and of an update. Imports no torch: the command line reads them at once."""

from typing import Self

from pydantic import Field, model_validator

from omni_rl.settings import DeviceKind, NumericsSettings, StrictSettings


class TrainSettings(StrictSettings, NumericsSettings):
    """Settings of a trainer group. Master weights and optimiser state are float32 whatever `dtype` is.

    `numerics` "matched" and "batch_invariant" compute the forward with vLLM's CPU operators, bit for bit as an engine
    of as many threads. `max_pack_tokens` bounds the tokens of one packed forward, hence its memory; `logprob_chunk` the
    rows of logits that exist at a time. `max_grad_norm` clips the global norm.
    `value_learning_rate` is that of PPO's value head; `weight_decay` is the model's and the head's. `device`: cuda
    gives each rank one, with nccl between them, and takes the reference numerics alone. `cpus_per_rank` is what Ray
    sets aside for a rank: a fraction lets ranks and engines share few cores, where whole CPUs would wait for ever.
    `collective_timeout` (seconds) is how long a rank waits for a peer that is alive but silent; a peer that died is
    noticed at once.
    """

    world_size: int = Field(default=2, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0)
    value_learning_rate: float = Field(default=1e-2, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = Field(default=1e-8, gt=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    max_pack_tokens: int = Field(default=4096, ge=2)
    logprob_chunk: int = Field(default=1024, ge=1)
    threads: int = Field(default=1, ge=1)
    seed: int = 0
    device: DeviceKind = "cpu"
    cpus_per_rank: float = Field(default=0.25, gt=0)
    resources: dict[str, float] = Field(default_factory=dict)
    """By Ray's names, set aside for a rank beside its CPUs, and beside its device."""
    collective_timeout: float = Field(default=300.0, gt=0)

    @model_validator(mode="after")
    def _reference_on_devices(self) -> Self:
        if self.device == "cuda" and self.numerics != "reference":
            raise ValueError(
                f'numerics "{self.numerics}" computes with vLLM\'s CPU operators: use "reference", or device "cpu"'
            )
        return self

    @property
    def set_aside(self) -> dict[str, float]:
        """The resources that Ray sets aside for each rank: `resources`, and a GPU if the ranks compute on CUDA."""
        return {**self.resources, "GPU": 1.0} if self.device == "cuda" else self.resources


class Objective(StrictSettings):
    """The objective that one update minimises: the clipped surrogate, plus `kl` times the k3 estimate of the KL to the
    reference, plus `value_weight` times the value loss. The last two count only where their targets are given.

    If `learning_rate` is None, the group's own is used. With `replay_routing`, the experts are the ones that the engine
    used (R3).
    """

    learning_rate: float | None = Field(default=None, ge=0)
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    clip_high: float = Field(default=0.28, gt=0)
    kl: float = Field(default=0.0, ge=0)
    value_clip: float = Field(default=0.2, gt=0)
    value_weight: float = Field(default=0.0, ge=0)
    replay_routing: bool = False


PLAIN = Objective()
"""The objective of a plain policy gradient at the group's own learning rate."""
