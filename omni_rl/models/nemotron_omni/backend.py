"""Which implementation a model computes with."""

from dataclasses import dataclass

from omni_rl.settings import Numerics


@dataclass(frozen=True)
class BackendConfig:
    """`logprob_chunk`: positions whose logits are held at once while scoring. `numerics`: plain torch and compiled
    loops, or vLLM's own CPU operators, which round where the engine does (`matched`, `batch_invariant`)."""

    logprob_chunk: int = 1024
    numerics: Numerics = "reference"
