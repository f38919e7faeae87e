"""Which implementation a model computes with."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BackendConfig:
    """`logprob_chunk`: positions whose logits are held at once while scoring."""

    logprob_chunk: int = 1024
