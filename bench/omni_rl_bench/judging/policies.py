"""Makes posted steps of two policies that are the same but for their kernels, as real runs have them.

Shapes: N answers, T sampled tokens of all of them, V ids.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.dtypes import Dtype
from omni_rl.kinds import KINDS

Array = NDArray[Any]
KERNELS: Mapping[str, float] = {"float32": 3e-7, "bfloat16": 0.02}
"""By how much the engine's kernels move a logit, by dtype; at some tokens they move it several times as much."""
IDS = 48
TOOL = 0.15
"""The share of the tokens that a tool wrote, in runs with tools."""
FLIPPED = 2e-3
"""The share of tokens of a bfloat16 step that a router's tie sends to another expert."""
LEARNT = 4e-3
"""By how much one update moves a logit."""


@dataclass(frozen=True)
class Shape:
    """How a run's steps look.

    `tokens` is an answer's mean length. `ranks` post the answers. `lag` is how many updates the engine is behind at
    most, as the run states. `tools`: some tokens are a tool's, masked, their logprobs garbage. `dropped`: answers are
    dropped after they were sampled, by their length, and the records say so. `kept_in_bfloat16`: the engine's logprobs
    are stored in bfloat16. `sure`: the policy is certain of most tokens, and both logprobs are exactly 0.0.
    """

    dtype: Dtype
    answers: int
    tokens: int
    ranks: int = 1
    lag: int = 0
    temperature: float = 1.0
    kinds: int = 1
    tools: bool = False
    dropped: bool = False
    kept_in_bfloat16: bool = False
    sure: bool = False


class Run:
    """One run's steps, each with other prompts."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.shape = shape
        self._rng = np.random.default_rng(seed)
        self._step = 0

    def step(self) -> list[list[dict[str, Any]]]:
        """Return the records of the next step, one list a rank."""
        shape, rng = self.shape, self._rng
        lengths = np.clip(rng.geometric(1 / shape.tokens, shape.answers), 1, 4 * shape.tokens)
        count = int(lengths.sum())
        scale = rng.lognormal(3.5 if shape.sure else 1.5, 0.8, (count, 1)).astype(np.float32)
        train = rng.standard_normal((count, IDS), np.float32) * scale
        engine = (train + self._kernels(count) + self._older(count)) / np.float32(shape.temperature)
        train /= np.float32(shape.temperature)
        ids = (engine + rng.gumbel(size=engine.shape).astype(np.float32)).argmax(-1)
        columns = {"ids": ids, "rollout_logprobs": _logprobs(engine, ids), "train_logprobs": _logprobs(train, ids)}
        if shape.kept_in_bfloat16:
            columns["rollout_logprobs"] = _bfloat16(columns["rollout_logprobs"])
        if shape.tools:
            self._call_a_tool(columns)
        rows = self._rows(columns, lengths)
        if shape.dropped:
            rows = [row for row in rows if len(row["ids"]) <= 2 * shape.tokens]
        self._step += 1
        return [rows[rank :: shape.ranks] for rank in range(shape.ranks)]

    def _kernels(self, count: int) -> Array:
        """Return heavy-tailed noise of logits, and a router's ties that fell the other way."""
        rng, size = self._rng, KERNELS[self.shape.dtype]
        spread = np.abs(rng.standard_t(4, (count, 1))).astype(np.float32) * np.float32(size)
        if self.shape.dtype == "bfloat16":
            spread[rng.random(count) < FLIPPED] = 0.5
        found: Array = rng.standard_normal((count, IDS), np.float32) * spread
        return found

    def _older(self, count: int) -> Array:
        """Return what the trainer has learnt since the engine's weights were made."""
        far = np.float32(LEARNT * self.shape.lag)
        found: Array = self._rng.standard_normal((count, IDS), np.float32) * far
        return found

    def _call_a_tool(self, columns: dict[str, Array]) -> None:
        """Turn some tokens into a tool's: the engine has a placeholder for them, the trainer whatever it makes of
        them."""
        mask = self._rng.random(len(columns["ids"])) >= TOOL
        wrote = ~mask
        columns["loss_mask"] = mask
        columns["rollout_logprobs"][wrote] = self._rng.choice([0.0, 1.0, np.nan, -9999.0], int(wrote.sum()))
        columns["train_logprobs"][wrote] = -self._rng.gamma(4, 1.5, int(wrote.sum()))

    def _rows(self, columns: Mapping[str, Array], lengths: Array) -> list[dict[str, Any]]:
        shape = self.shape
        version = f"r/1/{self._step + shape.lag}/trained"
        ends = np.cumsum(lengths).tolist()
        starts = [0, *ends[:-1]]
        rows = []
        for n, (first, end) in enumerate(zip(starts, ends, strict=True)):
            row: dict[str, Any] = {
                "sample": f"p{n // shape.ranks // 8}/{n // shape.ranks % 8}",  # alike on every rank
                "kind": KINDS[n // 8 % shape.kinds],
                "prompt_tokens": 0,
                "temperature": shape.temperature,
                "train_version": version,
                **{name: values[first:end] for name, values in columns.items()},
            }
            engine = f"r/1/{self._step + n % (shape.lag + 1)}/trained"
            row["version_spans"] = [{"version": engine, "start": 0, "end": end - first}]
            if shape.dropped:
                row["filtered"] = "length"
            rows.append(row)
        return rows


def _logprobs(logits: Array, ids: Array) -> Array:
    """Return the log-softmax of the ids, float64 [T], as float32 gives it: never above 0, and 0.0 where a token is
    certain."""
    z = logits - logits.max(-1, keepdims=True)
    z -= np.log(np.exp(z).sum(-1, keepdims=True))
    found: Array = np.take_along_axis(z, ids[:, None], -1)[:, 0].astype(np.float64)
    return found


def _bfloat16(values: Array) -> Array:
    """Return the values rounded to bfloat16, as some frameworks store logprobs."""
    bits = np.asarray(values, np.float32).view(np.uint32) + np.uint32(0x8000)
    found: Array = (bits & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)
    return found
