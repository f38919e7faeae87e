"""The mismatch figures of a set of sequences: of all, by kind of prompt, by position, by sequence."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.figures import REPORTED, Grouping, Metrics, k3, reduce
from omni_rl.consistency.records import SampleRecord
from omni_rl.consistency.router import Flip, LeaveOut, first_flip, kept_of

__all__ = [
    "REPORTED",
    "Comparison",
    "Metrics",
    "by_kind",
    "by_position",
    "by_sequence",
    "compare",
    "compare_some",
    "k3",
    "position_bins",
]


@dataclass(frozen=True)
class Comparison:
    """Metrics of a set of sequences, with the first router flip of each sequence that has one."""

    metrics: Metrics
    flips: tuple[Flip, ...]


def compare(records: Sequence[SampleRecord], *, leave_out: LeaveOut = "after_flip") -> Comparison:
    """Reduce sequences to metrics; what `leave_out` drops is counted in `excluded_tokens`.

    NaN or infinite logprobs come through as NaN or infinite metrics: they are never dropped.
    """
    flips = tuple(flip for record in records if (flip := first_flip(record)) is not None)
    return Comparison(_reduce(records, kept_of(records, leave_out), len(flips)), flips)


def compare_some(records: Sequence[SampleRecord], *, leave_out: LeaveOut) -> Comparison:
    """`compare`, but where flips would leave nothing, nothing is left out: they are no ties then, but other weights."""
    found = compare(records, leave_out=leave_out)
    return found if found.metrics.tokens else compare(records, leave_out="nothing")


def by_kind(records: Sequence[SampleRecord], *, leave_out: LeaveOut = "after_flip") -> dict[str, Comparison]:
    """`compare` for each kind of prompt, in order of first appearance."""
    kinds = dict.fromkeys(record.kind for record in records)
    return {kind: compare([r for r in records if r.kind == kind], leave_out=leave_out) for kind in kinds}


def by_sequence(records: Sequence[SampleRecord], *, leave_out: LeaveOut = "after_flip") -> dict[str, Comparison]:
    """`compare` for each sequence, by its sample name."""
    return {record.sample: compare([record], leave_out=leave_out) for record in records}


def position_bins(longest: int) -> list[tuple[int, int]]:
    """Bins of answer positions that double: [0, 8), [8, 16), [16, 32), ... until `longest` is inside."""
    edges = [0, 8]
    while edges[-1] < longest:
        edges.append(edges[-1] * 2)
    return list(pairwise(edges))


def by_position(
    records: Sequence[SampleRecord], *, leave_out: LeaveOut = "after_flip"
) -> dict[tuple[int, int], Metrics]:
    """Metrics of the tokens in each bin of `position_bins`; a sequence's flip counts in the bin where it first touches
    a token."""
    longest = max((len(record.rollout_logprobs) for record in records), default=0)
    masks = kept_of(records, leave_out)
    firsts = [
        max(0, flip.position - record.prompt_tokens + 1)
        for record in records
        if (flip := first_flip(record)) is not None
    ]
    result = {}
    for start, end in position_bins(longest):
        inside = [_part(record, start, end) for record in records]
        started = sum(start <= first < end for first in firsts)
        result[start, end] = _reduce(inside, [mask[start:end] for mask in masks], started)
    return result


def _part(record: SampleRecord, start: int, end: int) -> SampleRecord:
    """The sampled tokens from `start` to `end`, without router choices."""
    logprobs = record.rollout_logprobs[start:end], record.train_logprobs[start:end]
    return SampleRecord(record.sample, record.kind, record.prompt_tokens, *logprobs)


def _reduce(records: Sequence[SampleRecord], masks: Sequence[NDArray[np.bool_]], flips: int) -> Metrics:
    rollout = [record.rollout_logprobs[mask] for record, mask in zip(records, masks, strict=True)]
    train = [record.train_logprobs[mask] for record, mask in zip(records, masks, strict=True)]
    lr = np.concatenate([*rollout, np.empty(0)]).astype(np.float64)
    lt = np.concatenate([*train, np.empty(0)]).astype(np.float64)
    lengths = np.array([len(sequence) for sequence in rollout], np.int64)
    (found,) = reduce(lr, lt, [Grouping.whole(lengths)])
    return found.metrics(0, flips, sum(int((~mask).sum()) for mask in masks))
