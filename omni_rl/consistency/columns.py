"""A step's sequences as a few long arrays.

Shapes: N sequences, T sampled tokens of all of them, one sequence after the other; sequence n is
[offsets[n], offsets[n + 1]). P, L, K as in `records`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.figures import Array, Index, edges_of
from omni_rl.consistency.records import SampleRecord, differing
from omni_rl.once import once

Mask = NDArray[np.bool_]
BATCH = 2**18
"""The most router choices that are compared together, where there are several sequences."""


class Choices(NamedTuple):
    """The router's choices of one sequence: those of each side, int16 [P + T - 1, L, K], and the trainer's margins,
    float32 [P + T - 1, L]."""

    rollout: NDArray[np.int16]
    train: NDArray[np.int16]
    margins: NDArray[np.float32]


@dataclass(frozen=True)
class StepColumns:
    """Logprobs of the same sampled ids by rollout and trainer, float64 [T] each.

    `samples` and `kinds` name the N sequences and their kinds of prompt; `prompt_tokens` is int64 [N]. `loss_mask` bool
    [T] says which tokens the policy sampled for its loss; the others (a tool's answer, say) are in no figure. None: all
    count. `mixed_state` bool [T] says which tokens' state came in part from older weights. None: no token's did.
    `choices` has the router's choices by the sequence's number, for those sequences that have them.
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
        """Return the records of a step as arrays."""
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
        """Return the parts of all ranks as one step, in the order given."""
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
        """The bytes of the two arrays of logprobs."""
        return int(self.rollout_logprobs.nbytes + self.train_logprobs.nbytes)

    def take(self, numbers: Sequence[int]) -> "StepColumns":
        """Return some of the sequences as columns of their own, in the order given."""
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

    @once
    def flipped(self) -> dict[int, SampleRecord]:
        """The sequences in which the router chose another set of experts anywhere, by their number."""
        found: list[int] = []
        for numbers in _batches(self.choices):
            of_batch = [self.choices[number] for number in numbers]
            differs = differing(*(np.concatenate([choices[side] for choices in of_batch]) for side in (0, 1)))
            flips = edges_of(np.logical_or.reduce(differs, axis=-1))
            edges = edges_of(np.array([len(choices.rollout) for choices in of_batch], np.int64))
            found += np.array(numbers)[np.diff(flips[edges]) > 0].tolist()
        return {number: self.record(number) for number in sorted(found)}

    def record(self, number: int) -> SampleRecord:
        """Return one sequence as views of the columns, without its loss mask."""
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


def _batches(of: Mapping[int, Choices]) -> Iterator[list[int]]:
    """Yield the numbers of sequences whose choices are compared together: one by one, short ones would take longer than
    what is computed, and a copy of all would take too much memory."""
    batch: list[int] = []
    size, shape = 0, None
    for number, choices in of.items():
        if batch and (choices.rollout.shape[1:] != shape or size + choices.rollout.size > BATCH):
            yield batch
            batch, size = [], 0
        batch.append(number)
        size, shape = size + choices.rollout.size, choices.rollout.shape[1:]
    if batch:
        yield batch


def _joined(masks: Sequence[Mask | None], sizes: Sequence[int], *, missing: bool) -> Mask | None:
    """Return the masks of all parts, with `missing` for a part that has none; None if no part has one."""
    if all(mask is None for mask in masks):
        return None
    filled = (np.full(size, missing) if mask is None else mask for mask, size in zip(masks, sizes, strict=True))
    result: Mask = np.concatenate(list(filled))
    return result
