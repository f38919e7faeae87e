"""The mismatch figures and their formulas, under the field's names, in float64.

`lr` is the rollout engine's logprob of a sampled token, `lt` the trainer's, d = lt - lr. Shapes: T tokens, G groups of
them, R runs (the tokens of one sequence in one group).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.percentiles import percentiles
from omni_rl.once import once

Array = NDArray[np.float64]
Index = NDArray[np.int64]


@dataclass(frozen=True)
class Metrics:
    """The figures over a set of sampled tokens; every figure is NaN where `tokens` is 0.

    docs/concepts.md has the sentences below. Names and formulas are those of the frameworks that each figure names; the
    percentiles are ours. A new figure is the last field: the ledger's columns are in the order of the fields, and a
    migration adds them at the end.
    """

    tokens: int
    """Sampled tokens that count."""
    logprob_abs_diff_mean: float
    """Mean of abs d (TRL, SkyRL)."""
    logprob_abs_diff_max: float
    """The largest abs d (TRL, SkyRL)."""
    logprob_abs_diff_p50: float
    """Median of abs d."""
    logprob_abs_diff_p95: float
    """95th percentile of abs d."""
    logprob_abs_diff_p99: float
    """99th percentile of abs d."""
    token_mult_prob_error: float
    """Mean of exp(abs d); 1 is agreement (NeMo RL)."""
    gen_kl_error: float
    """Mean of exp(d) - 1 - d, the k3 estimate (NeMo RL, prime-rl, verl)."""
    policy_kl_error: float
    """Mean of exp(-d) - 1 + d (NeMo RL)."""
    js_divergence_error: float
    """The k3 estimate of the Jensen-Shannon divergence, from the tokens that were sampled (NeMo RL)."""
    rollout_probs_diff_mean: float
    """Mean of the abs difference of the two probabilities (verl)."""
    rollout_probs_diff_max: float
    """The largest abs difference of the two probabilities (verl)."""
    rollout_probs_diff_std: float
    """Standard deviation of the abs difference of the two probabilities (verl)."""
    chi2_token: float
    """Mean of exp(2 d), less 1 (verl)."""
    chi2_seq: float
    """Mean over the answers of exp(2 sum of d), less 1 (verl)."""
    ess: float
    """Effective sample size of the importance weights exp(d), as a share of the tokens (verl)."""
    seq_mult_prob_error_mean: float
    """Mean over the answers of the mean of exp(abs d) in each; 1 is agreement (NeMo RL)."""
    seq_mult_prob_error_max: float
    """The largest mean of exp(abs d) of an answer; 1 is agreement (NeMo RL)."""
    router_flips: int
    """Answers with a token whose expert choice differs."""
    excluded_tokens: int
    """Tokens that are left out for router flips."""

    @property
    def excluded_fraction(self) -> float:
        """The share of the tokens that router flips leave out, in [0, 1]."""
        return self.excluded_tokens / max(1, self.tokens + self.excluded_tokens)

    def report(self) -> dict[str, float]:
        """Return the subset of the figures that a run's report carries."""
        return {name: getattr(self, name) for name in REPORTED}


PERCENTS = (50, 95, 99)
REPORTED = (
    "tokens",
    "logprob_abs_diff_mean",
    "logprob_abs_diff_max",
    "logprob_abs_diff_p50",
    "logprob_abs_diff_p99",
    "gen_kl_error",
    "policy_kl_error",
    "token_mult_prob_error",
    "router_flips",
    "excluded_tokens",
)


def k3(d: Array) -> Array:
    """Return exp(d) - 1 - d, the low-variance KL estimate of Schulman's note; expm1 keeps it from underflowing to 0."""
    return np.expm1(d) - d


@dataclass(frozen=True)
class Grouping:
    """The assignment of tokens to runs, and of runs to groups.

    `edges` int64 [R + 1] says where runs begin and end; together they are all tokens, and none is empty. `group` int64
    [R] is the group of each run, below `count`. Figures of a group see its runs in the order in which they are here.
    """

    edges: Index
    group: Index
    count: int


class GroupFigures:
    """The figures of each group of a grouping.

    `run_error` float64 [R] is the mean exp(abs d) of each run, group by group.
    """

    run_error: Array

    def __init__(self, grouping: Grouping) -> None:
        lengths = np.diff(grouping.edges)
        self._runs = np.argsort(grouping.group, kind="stable")
        self._sizes = np.bincount(grouping.group, lengths, grouping.count).astype(np.int64)
        self._filled = np.flatnonzero(self._sizes)
        self._spans = _Spans.of(self._sizes[self._filled])
        self._runs_spans = _Spans.of(np.bincount(grouping.group, minlength=grouping.count)[self._filled])
        self._order: Index | None = None
        if np.any(grouping.group[1:] < grouping.group[:-1]):
            moved = lengths[self._runs]
            shift = grouping.edges[:-1][self._runs] - edges_of(moved)[:-1]
            self._order = np.repeat(shift, moved) + np.arange(grouping.edges[-1])
        self._found: dict[str, Array] = {}

    def take(self, term: str, values: Array) -> None:
        """Reduce one term of all tokens to what the figures need of it."""
        if self._order is not None:
            values = values[self._order]
        for name, reduction in _REDUCTIONS[term].items():
            self._found[f"{term} {name}"] = self._of_all(reduction(values, self._spans))
        if term == "size":
            ends = [*self._spans.starts.tolist(), len(values)]
            of_groups = np.array([percentiles(values[start:end], PERCENTS) for start, end in pairwise(ends)])
            for number, percent in enumerate(PERCENTS):
                self._found[f"size p{percent}"] = self._of_all(of_groups.reshape(-1, len(PERCENTS))[:, number])

    def take_runs(self, d: Array, error: Array) -> None:
        """Reduce the sum of `d` and the mean exp(abs d), `error`, of each run, [R], to the figures of the groups."""
        self.run_error = error[self._runs]
        self._found["run_ratio_squared mean"] = self._of_all(_means(np.exp(2 * d[self._runs]), self._runs_spans))
        self._found["run_error mean"] = self._of_all(_means(self.run_error, self._runs_spans))
        self._found["run_error max"] = self._of_all(_maxima(self.run_error, self._runs_spans))

    def size(self, group: int) -> int:
        """Return how many tokens a group has."""
        return int(self._sizes[group])

    def metrics(self, group: int, flips: int, excluded: int) -> Metrics:
        """Return the metrics of one group, with its counts of router flips and of tokens that were left out."""
        figures = {name: column[group] for name, column in self._columns.items()}
        return Metrics(tokens=self.size(group), router_flips=flips, excluded_tokens=excluded, **figures)

    @once
    def _columns(self) -> dict[str, list[float]]:
        """One figure for each group, by the names of `Metrics`."""
        found = self._found
        with np.errstate(all="ignore"):
            columns = {
                "logprob_abs_diff_mean": found["size mean"],
                "logprob_abs_diff_max": found["size max"],
                "logprob_abs_diff_p50": found["size p50"],
                "logprob_abs_diff_p95": found["size p95"],
                "logprob_abs_diff_p99": found["size p99"],
                "token_mult_prob_error": found["mult_prob mean"],
                "gen_kl_error": found["gen_kl mean"],
                "policy_kl_error": found["policy_kl mean"],
                "js_divergence_error": 0.5 * found["js_train mean"] + 0.5 * found["js_rollout mean"],
                "rollout_probs_diff_mean": found["probs_diff mean"],
                "rollout_probs_diff_max": found["probs_diff max"],
                "rollout_probs_diff_std": found["probs_diff std"],
                "chi2_token": found["ratio_squared mean"] - 1,
                "chi2_seq": found["run_ratio_squared mean"] - 1,
                "ess": found["ratio mean"] * found["ratio mean"] / found["ratio_squared mean"],
                "seq_mult_prob_error_mean": found["run_error mean"],
                "seq_mult_prob_error_max": found["run_error max"],
            }
        return {name: column.tolist() for name, column in columns.items()}

    def _of_all(self, of_filled: Array) -> Array:
        """Return the values of all groups, NaN for groups without a token."""
        if len(of_filled) == len(self._sizes):
            return of_filled
        result = np.full(len(self._sizes), np.nan)
        result[self._filled] = of_filled
        return result


# NaN, infinity and overflow are findings that the figures must show, not accidents to warn of.
@np.errstate(all="ignore")
def reduce(lr: Array, lt: Array, groupings: Sequence[Grouping]) -> list[GroupFigures]:
    """Return the figures of the tokens, grouped in each of several ways.

    One term after the other is computed, each of them for all groupings: no more than a few arrays are alive at a time,
    and these take turns in the same memory. Fresh pages would cost more than the arithmetic.
    """
    found = [GroupFigures(grouping) for grouping in groupings]
    for name, values in _terms(lr, lt):
        for of_grouping in found:
            of_grouping.take(name, values)
    d = lt - lr
    error = np.exp(np.abs(d))
    of_runs: dict[int, tuple[Array, Array]] = {}
    for grouping, of_grouping in zip(groupings, found, strict=True):
        if id(grouping.edges) not in of_runs:
            of_runs[id(grouping.edges)] = _of_runs(d, error, grouping.edges)
        of_grouping.take_runs(*of_runs[id(grouping.edges)])
    return found


def _of_runs(d: Array, error: Array, edges: Index) -> tuple[Array, Array]:
    if len(edges) == 1:
        return np.empty(0), np.empty(0)
    starts = edges[:-1]
    return np.add.reduceat(d, starts), np.add.reduceat(error, starts) / np.diff(edges)


def _terms(lr: Array, lt: Array) -> Iterator[tuple[str, Array]]:
    """Yield what each token adds to the figures, which are means and maxima of these terms."""
    d = lt - lr
    size = np.abs(d)
    yield "size", size
    yield "mult_prob", np.exp(size)
    del size
    yield "gen_kl", k3(d)
    yield "policy_kl", k3(-d)
    # log of the mixture's probability of the sampled token; logaddexp does not underflow for rare tokens
    mixture = np.logaddexp(lt, lr) - np.log(2)
    yield "js_train", k3(mixture - lt)
    yield "js_rollout", k3(mixture - lr)
    del mixture
    yield "probs_diff", np.abs(np.exp(lt) - np.exp(lr))
    ratio = np.exp(d)
    yield "ratio", ratio
    yield "ratio_squared", ratio**2


def edges_of(sizes: Index | NDArray[np.bool_]) -> Index:
    """Return where things of these sizes, one after the other, begin and end: [n + 1]."""
    result = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=result[1:])
    return result


class _Spans(NamedTuple):
    """Groups that follow each other, none of them empty: where each begins, and its size, int64 [F]."""

    starts: Index
    sizes: Index

    @classmethod
    def of(cls, sizes: Index) -> "_Spans":
        return cls(edges_of(sizes)[:-1], sizes)


# Reductions: values [T] of such groups, to [F].


def _means(values: Array, spans: _Spans) -> Array:
    if not len(values):
        return np.empty(0)
    result: Array = np.add.reduceat(values, spans.starts) / spans.sizes
    return result


def _maxima(values: Array, spans: _Spans) -> Array:
    result: Array = np.maximum.reduceat(values, spans.starts) if len(values) else np.empty(0)
    return result


def _deviations(values: Array, spans: _Spans) -> Array:
    centred = values - np.repeat(_means(values, spans), spans.sizes)
    result: Array = np.sqrt(_means(centred * centred, spans))
    return result


Reduction = Callable[[Array, _Spans], Array]
_MEAN: dict[str, Reduction] = {"mean": _means}
_REDUCTIONS: dict[str, dict[str, Reduction]] = {
    "size": {"mean": _means, "max": _maxima},
    "mult_prob": _MEAN,
    "gen_kl": _MEAN,
    "policy_kl": _MEAN,
    "js_train": _MEAN,
    "js_rollout": _MEAN,
    "probs_diff": {"mean": _means, "max": _maxima, "std": _deviations},
    "ratio": _MEAN,
    "ratio_squared": _MEAN,
}
