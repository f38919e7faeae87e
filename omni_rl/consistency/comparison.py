"""The figures of a step's columns in one reduction: what a service can afford on each step.

Shapes: N sequences, T sampled tokens of all of them, B bins of positions, G groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from omni_rl.consistency.columns import Mask, StepColumns
from omni_rl.consistency.figures import Array, GroupFigures, Grouping, Index, Metrics, edges_of, reduce
from omni_rl.consistency.metrics import Comparison, position_bins
from omni_rl.consistency.records import SampleRecord
from omni_rl.consistency.router import Flip, LeaveOut, accidental, first_flip, kept
from omni_rl.kinds import MIXED_STATE, OVERALL


@dataclass(frozen=True)
class StepComparison:
    """Figures of a step, equal to those of `metrics.compare` bit for bit.

    `by_kind` in order of first appearance; then, if there are such tokens, `mixed_state`, which are in no kind and not
    in `overall`: they are expected to be apart. `sequence_error` float64 [N]: mean exp(abs d) of each sequence, -inf
    for one without a token that counts.
    """

    overall: Comparison
    by_kind: Mapping[str, Comparison]
    sequence_error: Array
    positions: "Positions" = field(repr=False, compare=False)

    @cached_property
    def by_position(self) -> Mapping[str, Mapping[tuple[int, int], Metrics]]:
        """Kind (or `overall`) to bins of `position_bins` that hold a token; made when asked for, as no verdict does."""
        return self.positions.metrics()

    def worst(self, count: int) -> list[int]:
        """The sequences that are furthest apart, worst first; one that is not a number is worse than any."""
        order = np.argsort(-np.nan_to_num(self.sequence_error, nan=np.inf, neginf=-np.inf), kind="stable")
        return [int(n) for n in order[:count] if self.sequence_error[n] != -np.inf]


def compare_step(columns: StepColumns, *, leave_out: LeaveOut = "after_flip") -> StepComparison:
    """Reduce a step: overall, by kind, by kind and position, by sequence; tokens of mixed state apart from these."""
    pure = _compare(_only(columns, mixed=False), leave_out)
    if columns.mixed_state is None or not columns.mixed_state.any():
        return pure
    mixed = _compare(_only(columns, mixed=True), leave_out)
    return replace(pure, by_kind={**pure.by_kind, MIXED_STATE: mixed.overall})


def compare_each(columns: StepColumns, *, leave_out: LeaveOut = "after_flip") -> list[Metrics]:
    """The figures of each sequence by itself: `overall` of a step that has only that one."""
    columns = _only(columns, mixed=False)
    columns = replace(columns, kinds=columns.samples)  # each is a kind of its own: what it leaves out is its own affair
    flipped = _flips(columns)
    longest = int(np.diff(columns.offsets).max(initial=0))
    cells = _Cells.of(columns, flipped, leave_out, [(0, longest)])
    groups = cells.by_sequence(np.arange(len(columns.samples)), len(columns.samples))
    (figures,) = reduce(cells.rollout, cells.train, [groups.grouping])
    found = _Reduced(groups, figures)
    return [found.metrics(number, int(number in flipped)) for number in range(len(columns.samples))]


def _only(columns: StepColumns, *, mixed: bool) -> StepColumns:
    """Those tokens alone count whose state is, or is not, in part of older weights."""
    if columns.mixed_state is None:
        return columns
    counted = np.ones(columns.tokens, np.bool_) if columns.loss_mask is None else columns.loss_mask
    return replace(columns, loss_mask=counted & (columns.mixed_state == mixed))


def _flips(columns: StepColumns) -> dict[int, tuple[SampleRecord, Flip]]:
    """The sequences that have a flip, each with its first one, by their number."""
    routed = {n: columns.record(n) for n in sorted(columns.choices)}
    return {n: (record, flip) for n, record in routed.items() if (flip := first_flip(record)) is not None}


def _compare(columns: StepColumns, leave_out: LeaveOut) -> StepComparison:
    flipped = _flips(columns)
    flips = {n: flip for n, (_, flip) in flipped.items()}
    names = list(dict.fromkeys(columns.kinds))
    kind_of = np.array([names.index(kind) for kind in columns.kinds], np.int64)
    bins = position_bins(int(np.diff(columns.offsets).max(initial=0)))
    cells = _Cells.of(columns, flipped, leave_out, bins)
    row, at = np.divmod(np.arange(cells.kept.size), len(bins))
    groups = [
        cells.by_sequence(np.zeros_like(kind_of), 1),
        cells.by_sequence(kind_of, len(names)),
        cells.by_cell(at, len(bins)),
        cells.by_cell(kind_of[row] * len(bins) + at, len(names) * len(bins)),
    ]
    if len(names) == 1:  # one kind alone is the whole
        groups[1], groups[3] = groups[0], groups[2]
    distinct = list({id(group): group for group in groups}.values())
    reduced = reduce(cells.rollout, cells.train, [group.grouping for group in distinct])
    whole, by_kind, by_bin, by_kind_and_bin = (
        _Reduced(group, next(f for d, f in zip(distinct, reduced, strict=True) if d is group)) for group in groups
    )
    sequence_error = np.full(len(columns.samples), -np.inf)
    sequence_error[cells.sequences] = whole.figures.run_error
    of_kind = {name: [n for n in flips if columns.kinds[n] == name] for name in names}
    # A flip counts in the bin of the first token that it touches; one in the prompt touches all.
    touched = {n: max(0, flip.position - int(columns.prompt_tokens[n]) + 1) for n, flip in flips.items()}
    places = {OVERALL: list(touched.values())} | {name: [touched[n] for n in of_kind[name]] for name in names}
    return StepComparison(
        whole.comparison(0, list(flips.values())),
        {name: by_kind.comparison(code, [flips[n] for n in of_kind[name]]) for code, name in enumerate(names)},
        sequence_error,
        Positions(bins, by_bin, by_kind_and_bin, places),
    )


@dataclass(frozen=True)
class _Groups:
    """`excluded` int64 [G]: tokens that are left out."""

    grouping: Grouping
    excluded: Index


@dataclass(frozen=True)
class _Reduced:
    groups: _Groups
    figures: GroupFigures

    def holds(self, group: int) -> bool:
        """Whether it has a token, kept or left out."""
        return bool(self.figures.size(group) or self.groups.excluded[group])

    def metrics(self, group: int, flips: int) -> Metrics:
        return self.figures.metrics(group, flips, int(self.groups.excluded[group]))

    def comparison(self, group: int, flips: list[Flip]) -> Comparison:
        return Comparison(self.metrics(group, len(flips)), tuple(flips))


@dataclass(frozen=True)
class Positions:
    """Figures by bin, of all kinds and of each; `flips`: kind (or `overall`), in the groups' order, to the position of
    the first token that each flip touches."""

    bins: Sequence[tuple[int, int]]
    of_all: _Reduced
    of_kinds: _Reduced
    flips: Mapping[str, Sequence[int]]

    def metrics(self) -> dict[str, dict[tuple[int, int], Metrics]]:
        """Of the bins that hold a token."""
        kinds = [kind for kind in self.flips if kind != OVERALL]
        found = {OVERALL: self._row(self.of_all, 0, self.flips[OVERALL])}
        for code, kind in enumerate(kinds):
            found[kind] = self._row(self.of_kinds, code * len(self.bins), self.flips[kind])
        return found

    def _row(self, reduced: _Reduced, first: int, flips: Sequence[int]) -> dict[tuple[int, int], Metrics]:
        return {
            (start, end): reduced.metrics(group, sum(start <= position < end for position in flips))
            for group, (start, end) in enumerate(self.bins, first)
            if reduced.holds(group)
        }


@dataclass(frozen=True)
class _Cells:
    """A step's kept tokens, `rollout` and `train` logprobs, counted by sequence and bin of positions, B of them.

    `kept` and `excluded` int64 [N, B]: tokens of each cell that figures keep, and that they leave out. Tokens outside
    the loss mask are neither.
    """

    rollout: Array
    train: Array
    kept: Index
    excluded: Index

    @classmethod
    def of(
        cls,
        columns: StepColumns,
        flipped: Mapping[int, tuple[SampleRecord, Flip]],
        leave_out: LeaveOut,
        bins: Sequence[tuple[int, int]],
    ) -> "_Cells":
        counted = columns.loss_mask
        keeps = counted
        if flipped and leave_out != "nothing":
            keeps = _keeps(columns, {n: record for n, (record, _) in flipped.items()}, leave_out)
        ends = np.array([0, *(end for _, end in bins)], np.int64)
        bounds = columns.offsets[:-1, None] + np.minimum(np.diff(columns.offsets)[:, None], ends[None, :])
        sizes = _counts(keeps, bounds)
        rollout, train = columns.rollout_logprobs, columns.train_logprobs
        if keeps is not None and not keeps.all():
            rollout, train = rollout[keeps], train[keeps]
        return cls(rollout, train, sizes, _counts(counted, bounds) - sizes)

    @cached_property
    def sequences(self) -> Mask:
        """Which sequences [N] have a token that is kept."""
        result: Mask = self.kept.sum(axis=1) > 0
        return result

    def by_sequence(self, group: Index, count: int) -> _Groups:
        """Sequences in groups, [N]."""
        excluded = np.bincount(group, self.excluded.sum(axis=1), count).astype(np.int64)
        return _Groups(Grouping(self._sequence_edges, group[self.sequences], count), excluded)

    def by_cell(self, group: Index, count: int) -> _Groups:
        """Cells in groups, [N * B]."""
        excluded = np.bincount(group, self.excluded.reshape(-1), count).astype(np.int64)
        return _Groups(Grouping(self._cell_edges, group[self.kept.reshape(-1) > 0], count), excluded)

    @cached_property
    def _sequence_edges(self) -> Index:
        sizes = self.kept.sum(axis=1)
        return edges_of(sizes[sizes > 0])

    @cached_property
    def _cell_edges(self) -> Index:
        return edges_of(self.kept[self.kept > 0])


def _keeps(columns: StepColumns, flipped: Mapping[int, SampleRecord], leave_out: LeaveOut) -> Mask:
    """Tokens that count, without what flips leave out: `router.kept_of` for columns."""
    counted = np.ones(columns.tokens, np.bool_) if columns.loss_mask is None else columns.loss_mask
    keeps = counted.copy()
    for n, record in flipped.items():
        keeps[columns.offsets[n] : columns.offsets[n + 1]] &= kept(record, leave_out)
    if leave_out == "flipped":
        of_token = np.repeat(np.array(columns.kinds), np.diff(columns.offsets))
        for kind in dict.fromkeys(columns.kinds[n] for n in flipped):
            its = counted & (of_token == kind)
            tokens = int(its.sum())
            if not accidental(tokens - int(keeps[its].sum()), tokens):
                keeps |= its
    return keeps


def _counts(mask: Mask | None, bounds: Index) -> Index:
    """Tokens of a mask (None: all) between neighbouring bounds of each row."""
    return np.diff(bounds if mask is None else edges_of(mask)[bounds])
