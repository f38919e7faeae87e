"""A step's tokens counted by sequence and bin of positions: the groups that figures are made of.

Shapes: N sequences, T sampled tokens of all of them, B bins of positions, G groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from omni_rl.consistency.columns import Mask, StepColumns
from omni_rl.consistency.figures import Array, Grouping, Index, edges_of
from omni_rl.once import once


def position_bins(longest: int) -> list[tuple[int, int]]:
    """Return bins of answer positions that double: [0, 8), [8, 16), [16, 32), ... until one holds `longest`."""
    edges = [0, 8]
    while edges[-1] < longest:
        edges.append(edges[-1] * 2)
    return list(pairwise(edges))


@dataclass(frozen=True)
class Groups:
    """A grouping of the kept tokens. `excluded` int64 [G] counts the tokens of each group that the figures leave
    out."""

    grouping: Grouping
    excluded: Index


@dataclass(frozen=True)
class Cells:
    """The tokens of a step that its figures keep, `rollout` and `train` logprobs, counted by sequence and bin of
    positions.

    `kept` and `excluded` int64 [N, B] count the tokens of each cell that the figures keep and that they leave out.
    Tokens outside the loss mask are in neither.
    """

    rollout: Array
    train: Array
    kept: Index
    excluded: Index

    @classmethod
    def of(cls, columns: StepColumns, keeps: Mask | None, bins: Sequence[tuple[int, int]]) -> "Cells":
        """Count a step's tokens in `bins`. `keeps` says which tokens the figures keep; None keeps all."""
        ends = np.array([0, *(end for _, end in bins)], np.int64)
        bounds = columns.offsets[:-1, None] + np.minimum(np.diff(columns.offsets)[:, None], ends[None, :])
        sizes = _counts(keeps, bounds)
        rollout, train = columns.rollout_logprobs, columns.train_logprobs
        if keeps is not None and not keeps.all():
            rollout, train = rollout[keeps], train[keeps]
        return cls(rollout, train, sizes, _counts(columns.loss_mask, bounds) - sizes)

    @once
    def sequences(self) -> Mask:
        """Which sequences [N] have a token that is kept."""
        result: Mask = self.kept.sum(axis=1) > 0
        return result

    def by_sequence(self, group: Index, count: int) -> Groups:
        """Return the sequences in `count` groups; `group` [N] says which group each sequence is in."""
        excluded = np.bincount(group, self.excluded.sum(axis=1), count).astype(np.int64)
        return Groups(Grouping(self._sequence_edges, group[self.sequences], count), excluded)

    def by_cell(self, group: Index, count: int) -> Groups:
        """Return the cells in `count` groups; `group` [N * B] says which group each cell is in."""
        excluded = np.bincount(group, self.excluded.reshape(-1), count).astype(np.int64)
        return Groups(Grouping(self._cell_edges, group[self.kept.reshape(-1) > 0], count), excluded)

    @once
    def _sequence_edges(self) -> Index:
        sizes = self.kept.sum(axis=1)
        return edges_of(sizes[sizes > 0])

    @once
    def _cell_edges(self) -> Index:
        return edges_of(self.kept[self.kept > 0])


def _counts(mask: Mask | None, bounds: Index) -> Index:
    """Return how many tokens of a mask (None: of all) lie between neighbouring bounds of each row."""
    return np.diff(bounds if mask is None else edges_of(mask)[bounds])
