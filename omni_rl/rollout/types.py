"""Defines what the rollout side is asked for and what it answers.

Shapes: P prompt tokens, T sampled tokens, L MoE layers, K experts per token.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omni_rl.media.types import RenderedPrompt


@dataclass(frozen=True)
class SamplingSettings:
    """Sampling parameters, all explicit; nothing is taken from the checkpoint.

    `seed` is the seed of the first request; request i of a batch uses `seed + i`, whichever replica samples it. `top_k`
    (-1: off) and `top_p` (1.0: off) cut the support, so behaviour logprobs are normalised over the kept tokens only;
    they are refused unless `accept_truncated_support` is set.
    """

    max_tokens: int
    temperature: float = 1.0
    seed: int = 0
    ignore_eos: bool = False
    top_k: int = -1
    top_p: float = 1.0
    accept_truncated_support: bool = False


@dataclass(frozen=True)
class VersionSpan:
    """Says that the tokens `start` to `end` (exclusive) of an answer were sampled under `version`.

    With `mixed_state`, the weights were `version`'s, but the request's state (attention's keys and values, Mamba's
    states) came in part from older ones, because it was kept over a weight update.
    """

    version: str
    start: int
    end: int
    mixed_state: bool = False


@dataclass(frozen=True)
class Rollout:
    """One sampled answer.

    `ids` int64 [T] are the sampled tokens, `logprobs` float64 [T] their behaviour logprobs at `temperature`.
    `engine_digests` has one dict per media item, in the order of `prompt.items`: the digests of the tensors that the
    engine's model received. `experts` int16 [P + T - 1, L, K] are the router's choices for every position that was
    computed (the last sampled token never is), or None. `kept` has one entry per media item: bool [tubelets, tokens
    each], which tokens of a pruned video the engine kept, or None. `sequence` is the digest of the ids and media places
    that the engine ran; see `omni_rl.media.digests.sequence_digest`.
    """

    prompt: RenderedPrompt
    ids: NDArray[np.int64]
    logprobs: NDArray[np.float64]
    temperature: float
    version_spans: tuple[VersionSpan, ...]
    engine_digests: tuple[dict[str, str], ...]
    experts: NDArray[np.int16] | None
    finish_reason: str
    kept: tuple[NDArray[np.bool_] | None, ...] = ()
    sequence: str = ""


@dataclass(frozen=True)
class Rescore:
    """An answer scored again by prefill: `logprobs` float64 [T] are at temperature 1, `experts` are as in `Rollout`.

    `version` is that of the weights that scored all of it; it is empty for scores that are not an engine's prefill.
    """

    logprobs: NDArray[np.float64]
    experts: NDArray[np.int16] | None
    version: str = ""


@dataclass(frozen=True)
class Decoded:
    """An answer's first tokens decoded one by one, as many as `omni_rl.rollout.forced.LONGEST`; their logprobs are from
    the logits before the sampler touched them: `plain` float64 [T] at temperature 1, `tempered` float64 [T] at the
    answer's temperature."""

    plain: NDArray[np.float64]
    tempered: NDArray[np.float64]
