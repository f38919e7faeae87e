"""Reduces a step's columns to its figures in one pass, which is what a service can afford on each step.

Shapes: N sequences, T sampled tokens of all of them, B bins of positions, G groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from omni_rl.consistency.cells import Cells, Groups, position_bins
from omni_rl.consistency.columns import Mask, StepColumns
from omni_rl.consistency.figures import Array, GroupFigures, Index, Metrics, reduce
from omni_rl.consistency.left_out import TIES, Ties, kept_tokens
from omni_rl.consistency.limits import Figures
from omni_rl.consistency.records import SampleRecord
from omni_rl.consistency.router import Flip, first_flip
from omni_rl.kinds import MIXED_STATE, OVERALL, WITH_FLIPS
from omni_rl.once import once

FLOAT32 = TIES["float32"]


@dataclass(frozen=True)
class Comparison:
    """Metrics of a set of sequences, with the first router flip of each sequence that has one."""

    metrics: Metrics
    flips: tuple[Flip, ...]

    @property
    def figures(self) -> dict[str, float]:
        """All that may be judged: the metrics, and what is derived from them and from the flips.

        `excluded_fraction` is that of `Metrics`. `flip_margin_max` is the widest router margin of the flips; NaN if one
        is NaN.
        """
        widest = float(np.max([0.0, *(flip.margin for flip in self.flips)]))
        return {**vars(self.metrics), "excluded_fraction": self.metrics.excluded_fraction, "flip_margin_max": widest}


@dataclass(frozen=True)
class StepComparison:
    """The figures of a step: those of a kind are what that kind's sequences alone would have, bit for bit.

    `by_kind` is in order of first appearance. Tokens of mixed state, if there are any, come last in it as
    `mixed_state`: they are in no other kind and not in `overall`, because they are expected to be apart. `with_flips`
    is `overall` with the tokens that it leaves out; None where it leaves out none. `sequence_error` float64 [N] is the
    mean exp(abs d) of each sequence, -inf for one without a token that counts.
    """

    overall: Comparison
    by_kind: Mapping[str, Comparison]
    with_flips: Comparison | None
    sequence_error: Array
    positions: "Positions" = field(repr=False, compare=False)

    @property
    def comparisons(self) -> Mapping[str, Comparison]:
        """The comparison of all tokens, then of each kind, of tokens of mixed state, and of all with those that flips
        leave out."""
        left_out = {} if self.with_flips is None else {WITH_FLIPS: self.with_flips}
        return {OVERALL: self.overall, **self.by_kind, **left_out}

    @property
    def figures(self) -> Figures:
        """The figures of each kind."""
        return {kind: found.figures for kind, found in self.comparisons.items()}

    @once
    def by_position(self) -> Mapping[str, Mapping[tuple[int, int], Metrics]]:
        """The metrics of each kind (or `overall`) in those bins of `position_bins` that hold a token.

        They are made when they are asked for, because no verdict needs them.
        """
        return self.positions.metrics()

    def worst(self, count: int) -> list[int]:
        """Return the numbers of the sequences that are furthest apart, worst first; NaN is worse than any number."""
        order = np.argsort(-np.nan_to_num(self.sequence_error, nan=np.inf, neginf=-np.inf), kind="stable")
        return [int(n) for n in order[:count] if self.sequence_error[n] != -np.inf]


def compare(records: Sequence[SampleRecord], ties: Ties = FLOAT32) -> Comparison:
    """Compare all tokens of some sequences together."""
    return compare_step(StepColumns.of(records), ties).overall


def compare_step(columns: StepColumns, ties: Ties = FLOAT32) -> StepComparison:
    """Reduce a step: overall, by kind, by kind and position, by sequence; tokens of mixed state apart from these.

    The tokens that `ties` leave out are counted in `excluded_tokens`. NaN or infinite logprobs are never left out: they
    come through as NaN or infinite metrics.
    """
    pure = _compare(_only(columns, mixed=False), ties)
    if columns.mixed_state is None or not columns.mixed_state.any():
        return pure
    mixed = _compare(_only(columns, mixed=True), ties)
    return replace(pure, by_kind={**pure.by_kind, MIXED_STATE: mixed.overall})


def compare_each(columns: StepColumns, ties: Ties = FLOAT32) -> list[Metrics]:
    """Return the figures of each sequence by itself: `overall` of a step that has only that sequence."""
    columns = _only(columns, mixed=False)
    # Each is a kind of its own: what it leaves out is its own affair.
    columns = replace(columns, kinds=[str(n) for n in range(len(columns.samples))])
    count = len(columns.samples)
    found = _grouped(columns, kept_tokens(columns, columns.flipped, ties), np.arange(count), count)
    return [found.metrics(number, int(number in columns.flipped)) for number in range(count)]


def as_floats(comparisons: Mapping[str, Comparison]) -> Figures:
    """Return the figures of comparisons, counts as floats too: a check and a sync store them so."""
    return {
        kind: {name: float(value) for name, value in comparison.figures.items()}
        for kind, comparison in comparisons.items()
    }


def furthest(replicas: Sequence[Figures]) -> Figures:
    """Return for each kind the figures of the replica with the largest mean difference; NaN is larger than any."""
    kinds = dict.fromkeys(kind for figures in replicas for kind in figures)
    return {
        kind: max(
            (figures[kind] for figures in replicas if kind in figures),
            key=lambda found: np.nan_to_num(found["logprob_abs_diff_mean"], nan=np.inf),
        )
        for kind in kinds
    }


def _only(columns: StepColumns, *, mixed: bool) -> StepColumns:
    """Return the columns with only those tokens counted whose state came (`mixed`), or did not come, from older
    weights."""
    if columns.mixed_state is None:
        return columns
    counted = np.ones(columns.tokens, np.bool_) if columns.loss_mask is None else columns.loss_mask
    return replace(columns, loss_mask=counted & (columns.mixed_state == mixed))


def _compare(columns: StepColumns, ties: Ties) -> StepComparison:
    flipped = columns.flipped
    flips = {n: flip for n, record in flipped.items() if (flip := first_flip(record)) is not None}
    names = list(dict.fromkeys(columns.kinds))
    kind_of = np.array([names.index(kind) for kind in columns.kinds], np.int64)
    bins = position_bins(int(np.diff(columns.offsets).max(initial=0)))
    cells = Cells.of(columns, kept_tokens(columns, flipped, ties), bins)
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
    overall, with_flips = whole.comparison(0, list(flips.values())), None
    if overall.metrics.excluded_tokens:
        with_flips = _grouped(columns, columns.loss_mask, np.zeros_like(kind_of), 1).comparison(0, list(flips.values()))
    return StepComparison(
        overall,
        {name: by_kind.comparison(code, [flips[n] for n in of_kind[name]]) for code, name in enumerate(names)},
        with_flips,
        sequence_error,
        Positions(bins, by_bin, by_kind_and_bin, places),
    )


def _grouped(columns: StepColumns, keeps: Mask | None, group: Index, count: int) -> "_Reduced":
    """Reduce whole sequences in one way of grouping them."""
    longest = int(np.diff(columns.offsets).max(initial=0))
    cells = Cells.of(columns, keeps, [(0, longest)])
    groups = cells.by_sequence(group, count)
    (figures,) = reduce(cells.rollout, cells.train, [groups.grouping])
    return _Reduced(groups, figures)


@dataclass(frozen=True)
class _Reduced:
    groups: Groups
    figures: GroupFigures

    def holds(self, group: int) -> bool:
        """Return whether the group has a token, kept or left out."""
        return bool(self.figures.size(group) or self.groups.excluded[group])

    def metrics(self, group: int, flips: int) -> Metrics:
        return self.figures.metrics(group, flips, int(self.groups.excluded[group]))

    def comparison(self, group: int, flips: list[Flip]) -> Comparison:
        return Comparison(self.metrics(group, len(flips)), tuple(flips))


@dataclass(frozen=True)
class Positions:
    """Figures by bin, of all kinds and of each.

    `flips` has, for `overall` and each kind in the order of the groups, the position of the first token that each flip
    touches.
    """

    bins: Sequence[tuple[int, int]]
    of_all: _Reduced
    of_kinds: _Reduced
    flips: Mapping[str, Sequence[int]]

    def metrics(self) -> dict[str, dict[tuple[int, int], Metrics]]:
        """Return the metrics of the bins that hold a token, by kind (or `overall`) and bin."""
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
