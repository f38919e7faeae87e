"""Synthetic steps that look like a real run's: a policy's logits, sampled answers, both sides' logprobs with noise.

Shapes: B answers of T tokens over a vocabulary of V.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Row = dict[str, Any]
SPREAD = 2.4


class World:
    """One policy, and an engine that computes it with heavy-tailed noise, as two bfloat16 implementations differ (mean
    abs d about 0.011). The logits' scale is lognormal, so that some tokens are certain and others open."""

    def __init__(self, seed: int, answers: int = 64, tokens: int = 512, ids: int = 512, noise: float = 0.012) -> None:
        self.rng = np.random.default_rng(seed)
        self.shape = answers, tokens, ids
        self.noise = noise
        scale = self.rng.lognormal(2.0, 0.8, (answers, tokens, 1)).astype(np.float32)
        self.logits: Array = self.rng.standard_normal(self.shape, dtype=np.float32) * scale
        self.gumbel: Array = self.rng.gumbel(size=self.shape).astype(np.float32)
        spread = np.abs(self.rng.standard_t(4, (answers, tokens, 1))).astype(np.float32) * np.float32(noise * SPREAD)
        self.kernel: Array = self.rng.standard_normal(self.shape, dtype=np.float32) * spread

    def engine(self, logits: Array) -> Array:
        """The same logits as the engine's kernels make them: both sides stay proper policies, none above 0."""
        found: Array = logits + self.kernel
        return found

    def sample(self, logits: Array) -> Array:
        """Ids [B, T] from softmax(logits); the same random numbers each time: a fault changes as little as it can."""
        found: Array = (logits + self.gumbel).argmax(-1)
        return found

    def logprobs(self, logits: Array, ids: Array) -> Array:
        """Log-softmax of the ids, float64 [B, T]."""
        top = logits.max(-1, keepdims=True)
        # In place, and the ids' alone are kept: an array of this size takes longer to allocate than to compute.
        exponentials = logits - top
        np.exp(exponentials, out=exponentials)
        chosen = np.take_along_axis(logits, ids[..., None], -1) - top
        found: Array = (chosen - np.log(exponentials.sum(-1, keepdims=True)))[..., 0].astype(np.float64)
        return found

    def elsewhere(self, far: float) -> Array:
        """The engine's logits under other weights."""
        moved = far * self.rng.standard_normal(self.shape, dtype=np.float32)
        found: Array = self.engine(self.logits) + moved
        return found

    def cut(self, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0) -> Array:
        """Logits as a sampler cuts them."""
        order, ranked = self._ranked
        keep = np.ones_like(ranked, bool)
        if top_k:
            keep[..., top_k:] = False
        if top_p < 1:
            keep &= (np.cumsum(ranked, -1) - ranked) < top_p
        if min_p:
            keep &= ranked >= min_p * ranked[..., :1]
        mask = np.zeros_like(keep)
        np.put_along_axis(mask, order, keep, -1)
        return np.where(mask, self.logits, -np.inf)

    @cached_property
    def _ranked(self) -> tuple[Array, Array]:
        """Ids from the likeliest down, and their probabilities; the same for every cut of these logits."""
        p = np.exp(self.logits - self.logits.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        order = np.argsort(-p, -1)
        return order, np.take_along_axis(p, order, -1)

    def penalised(self, penalty: float, *, presence: bool = False) -> tuple[Array, Array]:
        """Logits under a repetition (or presence) penalty on what the answer already holds, and the ids sampled."""
        answers, tokens, ids = self.shape
        seen = np.zeros((answers, ids), bool)
        base = self.engine(self.logits)
        logits, sampled = base.copy(), np.zeros((answers, tokens), int)
        for t in range(tokens):
            z = base[:, t]
            divided = np.where(z > 0, z / penalty, z * penalty)
            logits[:, t] = np.where(seen, z - penalty if presence else divided, z)
            sampled[:, t] = (logits[:, t] + self.gumbel[:, t]).argmax(-1)
            seen[np.arange(answers), sampled[:, t]] = True
        return logits, sampled


def records(rollout: Any, train: Any, ids: Any = None, prefix: str = "p", **columns: Any) -> list[Row]:
    """A record an answer, in groups of eight; `columns` are one value an answer, or one for all."""
    found = []
    for n in range(len(rollout)):
        row: Row = {
            "sample": f"{prefix}{n // 8}/{n % 8}",
            "rollout_logprobs": [float(x) for x in rollout[n]],
            "train_logprobs": [float(x) for x in train[n]],
        }
        if ids is not None:
            row["ids"] = [int(x) for x in ids[n]]
            row["prompt_tokens"] = 0
        for name, values in columns.items():
            value = values[n] if isinstance(values, (list, np.ndarray)) else values
            row[name] = value.tolist() if isinstance(value, np.ndarray) else value
        found.append(row)
    return found


@dataclass
class Case:
    """Steps to post (each a list of parts, each a list of records) and what the last verdict must be.

    `severity`: those that are right ("refused": the part or the seal was refused). `cause`: those that are right; None
    among them: no cause. Empty: any. `attempts`: the attempt of each step. `standing`: where the run may stand after
    it, whatever the last step's own severity.
    """

    name: str
    steps: Sequence[Sequence[list[Row]]]
    severity: set[str]
    cause: set[str | None] = field(default_factory=set)
    dtype: str = "bfloat16"
    attempts: list[int] | None = None
    standing: set[str] = field(default_factory=set)


RED = {"mask", "pause"}
SEEN = {"warn", "mask", "pause"}
