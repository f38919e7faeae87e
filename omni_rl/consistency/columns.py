"""A step's sequences as a few long arrays.

Shapes: N sequences, T sampled tokens of all of them, one sequence after the other; sequence n is
[offsets[n], offsets[n + 1]). P, L, K as in `records`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.figures import Array, Index, edges_of
from omni_rl.consistency.records import SampleRecord

Mask = NDArray[np.bool_]


class Choices(NamedTuple):
    """The router's choices of one sequence: int16 [P + T - 1, L, K] twice, and margins float32 [P + T - 1, L]."""

    rollout: NDArray[np.int16]
    train: NDArray[np.int16]
    margins: NDArray[np.float32]


@dataclass(frozen=True)
class StepColumns:
    """Logprobs of the same sampled ids by rollout and trainer, float64 [T] each.

    `samples` and `kinds` name the N sequences, `prompt_tokens` int64 [N]. `loss_mask` bool [T]: which tokens the
    policy sampled for its loss; the others (a tool's answer, say) are in no figure. None: all. `mixed_state` bool [T]:
    which tokens' state came in part from older weights. None: no token's. `choices` by the sequence's number, for those
    that have them.
    """

    samples: Sequence[str]
    kinds: Sequence[str]
    prompt_tokens: Index
    offsets: Index
    rollout_logprobs: Array
    train_logprobs: Array
    loss_mask: Mask | None = None
    choices: Mapping[int, Choices] = field(default_factory=dict)
    mixed_state: Mask | None = None

    @classmethod
    def of(cls, records: Sequence[SampleRecord]) -> "StepColumns":
        """The same as arrays."""
        return cls(
            [record.sample for record in records],
            [record.kind for record in records],
            np.array([record.prompt_tokens for record in records], np.int64),
            np.cumsum([0, *(len(record.rollout_logprobs) for record in records)], dtype=np.int64),
            np.concatenate([*(record.rollout_logprobs for record in records), np.empty(0)]).astype(np.float64),
            np.concatenate([*(record.train_logprobs for record in records), np.empty(0)]).astype(np.float64),
            None,
            {
                number: Choices(record.rollout_experts, record.train_experts, record.margins)
                for number, record in enumerate(records)
                if record.rollout_experts is not None
                and record.train_experts is not None
                and record.margins is not None
            },
        )

    @classmethod
    def joined(cls, parts: Sequence["StepColumns"]) -> "StepColumns":
        """The parts of all ranks as one step, in the order given."""
        if len(parts) == 1:
            return parts[0]
        firsts = np.cumsum([0, *(len(part.samples) for part in parts)])
        starts = np.cumsum([0, *(part.tokens for part in parts)])
        return cls(
            [sample for part in parts for sample in part.samples],
            [kind for part in parts for kind in part.kinds],
            np.concatenate([part.prompt_tokens for part in parts]),
            np.concatenate([np.zeros(1, np.int64), *(p.offsets[1:] + s for p, s in zip(parts, starts, strict=False))]),
            np.concatenate([part.rollout_logprobs for part in parts]),
            np.concatenate([part.train_logprobs for part in parts]),
            _joined([part.loss_mask for part in parts], [part.tokens for part in parts], missing=True),
            {n + int(first): c for part, first in zip(parts, firsts, strict=False) for n, c in part.choices.items()},
            _joined([part.mixed_state for part in parts], [part.tokens for part in parts], missing=False),
        )

    @property
    def tokens(self) -> int:
        return len(self.rollout_logprobs)

    @property
    def nbytes(self) -> int:
        """Of the logprobs."""
        return int(self.rollout_logprobs.nbytes + self.train_logprobs.nbytes)

    def take(self, numbers: Sequence[int]) -> "StepColumns":
        """Some of the sequences, in the order given."""
        spans = [np.arange(self.offsets[n], self.offsets[n + 1]) for n in numbers]
        tokens = np.concatenate([np.empty(0, np.int64), *spans])
        return StepColumns(
            [self.samples[n] for n in numbers],
            [self.kinds[n] for n in numbers],
            self.prompt_tokens[list(numbers)],
            edges_of(np.array([len(span) for span in spans], np.int64)),
            self.rollout_logprobs[tokens],
            self.train_logprobs[tokens],
            None if self.loss_mask is None else self.loss_mask[tokens],
            {place: self.choices[n] for place, n in enumerate(numbers) if n in self.choices},
            None if self.mixed_state is None else self.mixed_state[tokens],
        )

    def record(self, number: int) -> SampleRecord:
        """One sequence, as views; its loss mask is not part of it."""
        start, end = self.offsets[number], self.offsets[number + 1]
        choices = self.choices.get(number)
        return SampleRecord(
            self.samples[number],
            self.kinds[number],
            int(self.prompt_tokens[number]),
            self.rollout_logprobs[start:end],
            self.train_logprobs[start:end],
            *(choices or (None, None, None)),
        )


def _joined(masks: Sequence[Mask | None], sizes: Sequence[int], *, missing: bool) -> Mask | None:
    """The masks of all parts, with `missing` for a part that has none; None if no part has one."""
    if all(mask is None for mask in masks):
        return None
    filled = (np.full(size, missing) if mask is None else mask for mask, size in zip(masks, sizes, strict=True))
    result: Mask = np.concatenate(list(filled))
    return result
