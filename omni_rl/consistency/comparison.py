"""The figures of a step's columns in one reduction: what a service can afford on each step.

Shapes: N sequences, T sampled tokens of all of them, B bins of positions, G groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from omni_rl.consistency.cells import Cells, Groups, position_bins
from omni_rl.consistency.columns import Mask, StepColumns
from omni_rl.consistency.figures import Array, GroupFigures, Index, Metrics, reduce
from omni_rl.consistency.left_out import TIES, Ties, kept_tokens
from omni_rl.consistency.limits import Figures
from omni_rl.consistency.records import SampleRecord
from omni_rl.consistency.router import Flip, first_flip
from omni_rl.kinds import MIXED_STATE, OVERALL, WITH_FLIPS

FLOAT32 = TIES["float32"]


@dataclass(frozen=True)
class Comparison:
    """Metrics of a set of sequences, with the first router flip of each sequence that has one."""

    metrics: Metrics
    flips: tuple[Flip, ...]

    @property
    def figures(self) -> dict[str, float]:
        """All that may be judged: the metrics, and what is derived from them and from the flips.

        `excluded_fraction`: see `Metrics`. `flip_margin_max`: the widest router margin of the flips; NaN if one is.
        """
        widest = float(np.max([0.0, *(flip.margin for flip in self.flips)]))
        return {**vars(self.metrics), "excluded_fraction": self.metrics.excluded_fraction, "flip_margin_max": widest}


@dataclass(frozen=True)
class StepComparison:
    """Figures of a step: those of a kind are what that kind's sequences alone would have, bit for bit.

    `by_kind` in order of first appearance; then, if there are such tokens, `mixed_state`, which are in no kind and not
    in `overall`: they are expected to be apart. `with_flips`: `overall` with the tokens that it leaves out; None where
    it leaves out none. `sequence_error` float64 [N]: mean exp(abs d) of each sequence, -inf for one without a token
    that counts.
    """

    overall: Comparison
    by_kind: Mapping[str, Comparison]
    with_flips: Comparison | None
    sequence_error: Array
    positions: "Positions" = field(repr=False, compare=False)

    @property
    def buckets(self) -> Mapping[str, Comparison]:
        """Overall, then each kind, then tokens of mixed state, then those that flips leave out along with overall's."""
        left_out = {} if self.with_flips is None else {WITH_FLIPS: self.with_flips}
        return {OVERALL: self.overall, **self.by_kind, **left_out}

    @property
    def figures(self) -> Figures:
        """By bucket."""
        return {bucket: found.figures for bucket, found in self.buckets.items()}

    @cached_property
    def by_position(self) -> Mapping[str, Mapping[tuple[int, int], Metrics]]:
        """Kind (or `overall`) to bins of `position_bins` that hold a token; made when asked for, as no verdict does."""
        return self.positions.metrics()

    def worst(self, count: int) -> list[int]:
        """The sequences that are furthest apart, worst first; one that is not a number is worse than any."""
        order = np.argsort(-np.nan_to_num(self.sequence_error, nan=np.inf, neginf=-np.inf), kind="stable")
        return [int(n) for n in order[:count] if self.sequence_error[n] != -np.inf]


def compare(records: Sequence[SampleRecord], ties: Ties = FLOAT32) -> Comparison:
    """All of some sequences together."""
    return compare_step(StepColumns.of(records), ties).overall


def compare_step(columns: StepColumns, ties: Ties = FLOAT32) -> StepComparison:
    """Reduce a step: overall, by kind, by kind and position, by sequence; tokens of mixed state apart from these.

    What `ties` drop is counted in `excluded_tokens`. NaN or infinite logprobs come through as NaN or infinite metrics:
    they are never dropped.
    """
    pure = _compare(_only(columns, mixed=False), ties)
    if columns.mixed_state is None or not columns.mixed_state.any():
        return pure
    mixed = _compare(_only(columns, mixed=True), ties)
    return replace(pure, by_kind={**pure.by_kind, MIXED_STATE: mixed.overall})


def compare_each(columns: StepColumns, ties: Ties = FLOAT32) -> list[Metrics]:
    """The figures of each sequence by itself: `overall` of a step that has only that one."""
    columns = _only(columns, mixed=False)
    # Each is a kind of its own: what it leaves out is its own affair.
    columns = replace(columns, kinds=[str(n) for n in range(len(columns.samples))])
    flipped, count = _flipped(columns), len(columns.samples)
    found = _grouped(columns, kept_tokens(columns, flipped, ties), np.arange(count), count)
    return [found.metrics(number, int(number in flipped)) for number in range(count)]


def furthest(replicas: Sequence[Figures]) -> Figures:
    """For each bucket the figures of the replica with the largest mean difference; NaN is larger than any."""
    buckets = dict.fromkeys(bucket for figures in replicas for bucket in figures)
    return {
        bucket: max(
            (figures[bucket] for figures in replicas if bucket in figures),
            key=lambda found: np.nan_to_num(found["logprob_abs_diff_mean"], nan=np.inf),
        )
        for bucket in buckets
    }


def _only(columns: StepColumns, *, mixed: bool) -> StepColumns:
    """Those tokens alone count whose state is, or is not, in part of older weights."""
    if columns.mixed_state is None:
        return columns
    counted = np.ones(columns.tokens, np.bool_) if columns.loss_mask is None else columns.loss_mask
    return replace(columns, loss_mask=counted & (columns.mixed_state == mixed))


def _flipped(columns: StepColumns) -> dict[int, SampleRecord]:
    """The sequences that have a flip, by their number."""
    routed = {n: columns.record(n) for n in sorted(columns.choices)}
    return {n: record for n, record in routed.items() if first_flip(record) is not None}


def _compare(columns: StepColumns, ties: Ties) -> StepComparison:
    flipped = _flipped(columns)
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
    """Of whole sequences in one way of grouping them."""
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
