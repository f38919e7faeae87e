"""A step's sequences as a few long arrays, and their figures in one reduction: what a service can afford on each step.

Shapes: N sequences, T sampled tokens of all of them, one sequence after the other; sequence n is
[offsets[n], offsets[n + 1]). P, L, K as in `records`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.figures import Array, Metrics, Terms, figures
from omni_rl.consistency.metrics import Comparison, position_bins
from omni_rl.consistency.records import SampleRecord
from omni_rl.consistency.router import Flip, LeaveOut, first_flip, kept

OVERALL = "overall"
Mask = NDArray[np.bool_]
Index = NDArray[np.int64]


class Choices(NamedTuple):
    """The router's choices of one sequence: int16 [P + T - 1, L, K] twice, and margins float32 [P + T - 1, L]."""

    rollout: NDArray[np.int16]
    train: NDArray[np.int16]
    margins: NDArray[np.float32]


@dataclass(frozen=True)
class StepColumns:
    """Logprobs of the same sampled ids by rollout and trainer, float64 [T] each.

    `samples` and `kinds` name the N sequences, `prompt_tokens` int64 [N]. `loss_mask` bool [T]: which tokens the
    policy sampled for its loss; the others (a tool's answer, say) are in no figure. None: all. `choices` by the
    sequence's number, for those that have them.
    """

    samples: Sequence[str]
    kinds: Sequence[str]
    prompt_tokens: Index
    offsets: Index
    rollout_logprobs: Array
    train_logprobs: Array
    loss_mask: Mask | None = None
    choices: Mapping[int, Choices] = field(default_factory=dict)

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
        masks = [np.ones(part.tokens, np.bool_) if part.loss_mask is None else part.loss_mask for part in parts]
        return cls(
            [sample for part in parts for sample in part.samples],
            [kind for part in parts for kind in part.kinds],
            np.concatenate([part.prompt_tokens for part in parts]),
            np.concatenate([np.zeros(1, np.int64), *(p.offsets[1:] + s for p, s in zip(parts, starts, strict=False))]),
            np.concatenate([part.rollout_logprobs for part in parts]),
            np.concatenate([part.train_logprobs for part in parts]),
            np.concatenate(masks) if any(part.loss_mask is not None for part in parts) else None,
            {n + int(first): c for part, first in zip(parts, firsts, strict=False) for n, c in part.choices.items()},
        )

    @property
    def tokens(self) -> int:
        return len(self.rollout_logprobs)

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


@dataclass(frozen=True)
class StepComparison:
    """Figures of a step, equal to those of `metrics.compare` bit for bit.

    `by_kind` in order of first appearance. `by_position`: kind (or `overall`) to bins of `position_bins` that hold a
    token. `sequence_error` float64 [N]: mean exp(abs d) of each sequence, -inf for one without a token that counts.
    """

    overall: Comparison
    by_kind: Mapping[str, Comparison]
    by_position: Mapping[str, Mapping[tuple[int, int], Metrics]]
    sequence_error: Array

    def worst(self, count: int) -> list[int]:
        """The sequences that are furthest apart, worst first; one that is not a number is worse than any."""
        order = np.argsort(-np.nan_to_num(self.sequence_error, nan=np.inf, neginf=-np.inf), kind="stable")
        return [int(n) for n in order[:count] if self.sequence_error[n] != -np.inf]


def compare_step(columns: StepColumns, *, leave_out: LeaveOut = "after_flip") -> StepComparison:
    """Reduce a step: overall, by kind, by kind and position, by sequence."""
    flips = {n: flip for n in sorted(columns.choices) if (flip := first_flip(columns.record(n))) is not None}
    names = list(dict.fromkeys(columns.kinds))
    codes = {name: code for code, name in enumerate(names)}
    kind_of = np.array([codes[kind] for kind in columns.kinds], np.int16)
    tokens = _tokens(columns, flips, leave_out)
    overall = tokens.in_groups(np.zeros(len(tokens.row), np.int16), 1)
    sequence_error = np.full(len(columns.samples), -np.inf)
    sequence_error[overall.rows] = overall.sequence_error
    kinds = overall if len(names) == 1 else tokens.in_groups(kind_of[tokens.row], len(names))
    listed = tuple(flips.values())
    of_kind = {name: tuple(f for n, f in flips.items() if columns.kinds[n] == name) for name in names}
    return StepComparison(
        Comparison(overall.figures(0, len(listed)), listed),
        {name: Comparison(kinds.figures(code, len(of_kind[name])), of_kind[name]) for name, code in codes.items()},
        _by_position(columns, tokens, flips, names, kind_of),
        sequence_error,
    )


def _by_position(
    columns: StepColumns, tokens: "_Tokens", flips: Mapping[int, Flip], names: list[str], kind_of: NDArray[np.int16]
) -> dict[str, dict[tuple[int, int], Metrics]]:
    longest = int(np.diff(columns.offsets).max(initial=0))
    bins = position_bins(longest)
    bin_at = np.repeat(np.arange(len(bins), dtype=np.int16), [end - start for start, end in bins])
    bin_of = bin_at[tokens.position]
    started: dict[tuple[str, int], int] = {}
    for n, flip in flips.items():
        at = int(bin_at[max(0, flip.position - int(columns.prompt_tokens[n]) + 1)])
        for name in (OVERALL, columns.kinds[n]):
            started[name, at] = started.get((name, at), 0) + 1
    together = tokens.in_groups(bin_of, len(bins))
    apart = together
    if len(names) > 1:
        apart = tokens.in_groups(kind_of[tokens.row] * np.int16(len(bins)) + bin_of, len(names) * len(bins))
    result = {}
    for name, groups, first in ((OVERALL, together, 0), *((n, apart, c * len(bins)) for c, n in enumerate(names))):
        result[name] = {
            edges: groups.figures(first + at, started.get((name, at), 0))
            for at, edges in enumerate(bins)
            if groups.holds(first + at)
        }
    return result


@dataclass(frozen=True)
class _Tokens:
    """Tokens that the loss counts: their sequence, their position in it, whether figures keep them; their terms."""

    row: Index
    position: Index
    kept: Mask | None
    terms: Terms

    def in_groups(self, group: NDArray[np.int16], count: int) -> "_Groups":
        """Sorted by group; within one they keep their order, which is that of `metrics.compare`."""
        sizes = np.bincount(group, minlength=count)
        kept = self.kept
        ordered = count == 1 or bool(np.all(group[1:] >= group[:-1]))
        # A stable sort of 16-bit keys is a radix sort.
        order: Index | slice = slice(None) if ordered else np.argsort(group, kind="stable")
        if kept is None:
            return _Groups.of(self.terms.take(order), self.row[order], group[order], sizes, np.zeros_like(sizes))
        order = np.flatnonzero(kept) if isinstance(order, slice) else order[kept[order]]
        keeping = np.bincount(group[order], minlength=count)
        return _Groups.of(self.terms.take(order), self.row[order], group[order], keeping, sizes - keeping)


@dataclass(frozen=True)
class _Groups:
    """Terms of kept tokens, group after group; `edges` of groups, `runs` of a group's sequences."""

    terms: Terms
    edges: Index
    excluded: Index
    run_edges: Index
    rows: Index
    sequence_d: Array
    sequence_error: Array

    @classmethod
    def of(cls, terms: Terms, row: Index, group: NDArray[np.int16], sizes: Index, excluded: Index) -> "_Groups":
        edges = np.cumsum(np.concatenate([np.zeros(1, np.int64), sizes]))
        changes = np.flatnonzero((row[1:] != row[:-1]) | (group[1:] != group[:-1])) + 1
        bounds = np.concatenate([np.zeros(1, np.int64), changes, np.full(1, len(row))]) if len(row) else edges[:1]
        return cls(terms, edges, excluded, np.searchsorted(bounds, edges), row[bounds[:-1]], *terms.by_sequence(bounds))

    def holds(self, group: int) -> bool:
        """Whether it has a token, kept or left out."""
        return bool(self.edges[group + 1] > self.edges[group] or self.excluded[group])

    def figures(self, group: int, flips: int) -> Metrics:
        tokens = slice(self.edges[group], self.edges[group + 1])
        runs = slice(self.run_edges[group], self.run_edges[group + 1])
        return figures(
            self.terms.take(tokens), self.sequence_d[runs], self.sequence_error[runs], flips, int(self.excluded[group])
        )


def _tokens(columns: StepColumns, flips: Mapping[int, Flip], leave_out: LeaveOut) -> _Tokens:
    lengths = np.diff(columns.offsets)
    row = np.repeat(np.arange(len(lengths)), lengths)
    position = np.arange(columns.tokens) - np.repeat(columns.offsets[:-1], lengths)
    keeps = None
    if flips and leave_out != "nothing":
        keeps = np.ones(columns.tokens, np.bool_)
        for n in flips:
            keeps[columns.offsets[n] : columns.offsets[n + 1]] = kept(columns.record(n), leave_out)
    terms = Terms.of(columns.rollout_logprobs, columns.train_logprobs)
    if columns.loss_mask is None or columns.loss_mask.all():
        return _Tokens(row, position, keeps, terms)
    counted = np.flatnonzero(columns.loss_mask)
    return _Tokens(row[counted], position[counted], None if keeps is None else keeps[counted], terms.take(counted))
