"""Chooses the implementation that a model computes with."""

from dataclasses import dataclass

from omni_rl.settings import Numerics


@dataclass(frozen=True)
class BackendConfig:
    """How a model computes. `logprob_chunk` is how many positions have their logits in memory at once while scoring.

    `numerics` is plain torch and compiled loops, or vLLM's own CPU operators, which round where the engine does
    (`matched`, `batch_invariant`).
    """

    logprob_chunk: int = 1024
    numerics: Numerics = "reference"
