"""The mismatch figures and their formulas, under the field's names, in float64.

`lr` is the rollout engine's logprob of a sampled token, `lt` the trainer's, d = lt - lr. Shapes: T tokens, G groups of
them, R runs (the tokens of one sequence in one group).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.percentiles import percentiles

Array = NDArray[np.float64]
Index = NDArray[np.int64]


@dataclass(frozen=True)
class Metrics:
    """Over a set of sampled tokens; every figure is NaN where `tokens` is 0.

    Names and formulas: NeMo RL (`token_mult_prob_error`, `gen_kl_error`, `policy_kl_error`, `js_divergence_error`,
    `seq_mult_prob_error_*`), TRL and SkyRL (`logprob_abs_diff_*`), verl (`rollout_probs_diff_*`, `chi2_*`, `ess`).
    The percentiles are ours.
    """

    tokens: int
    logprob_abs_diff_mean: float
    logprob_abs_diff_max: float
    logprob_abs_diff_p50: float
    logprob_abs_diff_p95: float
    logprob_abs_diff_p99: float
    token_mult_prob_error: float
    gen_kl_error: float
    policy_kl_error: float
    js_divergence_error: float
    rollout_probs_diff_mean: float
    rollout_probs_diff_max: float
    rollout_probs_diff_std: float
    chi2_token: float
    chi2_seq: float
    ess: float
    seq_mult_prob_error_mean: float
    seq_mult_prob_error_max: float
    router_flips: int
    excluded_tokens: int

    def report(self) -> dict[str, float]:
        """The subset that a run's report carries."""
        return {name: getattr(self, name) for name in REPORTED}


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
    """exp(d) - 1 - d, the low-variance KL estimate of Schulman's note; expm1 keeps it from underflowing to 0."""
    return np.expm1(d) - d


@dataclass(frozen=True)
class Grouping:
    """Tokens in runs, and runs in groups.

    `edges` int64 [R + 1]: where runs begin and end; together they are all tokens, and none is empty. `group` int64 [R]:
    the group of each run, below `count`. Figures of a group see its runs in the order in which they are here.
    """

    edges: Index
    group: Index
    count: int

    @classmethod
    def whole(cls, lengths: Index) -> "Grouping":
        """One group of sequences that follow each other; those of length 0 are no runs."""
        edges = edges_of(lengths[lengths > 0])
        return cls(edges, np.zeros(len(edges) - 1, np.int64), 1)


class GroupFigures:
    """The figures of each group of a grouping. `run_error` float64 [R]: mean exp(abs d) of each run, group by group."""

    run_error: Array
    _run_d: Array

    def __init__(self, grouping: Grouping) -> None:
        sizes = np.diff(grouping.edges)
        self._runs = np.argsort(grouping.group, kind="stable")
        self._sizes = np.bincount(grouping.group, sizes, grouping.count).astype(np.int64)
        self._spans = [slice(*ends) for ends in _pairs(edges_of(self._sizes))]
        self._runs_of = _pairs(edges_of(np.bincount(grouping.group, minlength=grouping.count)))
        self._order: Index | None = None
        if np.any(grouping.group[1:] < grouping.group[:-1]):
            moved = sizes[self._runs]
            shift = grouping.edges[:-1][self._runs] - edges_of(moved)[:-1]
            self._order = np.repeat(shift, moved) + np.arange(grouping.edges[-1])
        self._found: dict[str, list[Any]] = {}

    def take(self, term: str, values: Array) -> None:
        """Reduce one term of all tokens to what the figures need of it."""
        if self._order is not None:
            values = values[self._order]
        for name, reduction in _REDUCTIONS[term].items():
            self._found[name] = [reduction(values[span]) if span.stop > span.start else np.nan for span in self._spans]

    def take_runs(self, d: Array, error: Array) -> None:
        """The sum of d and the mean exp(abs d) of each run, [R]."""
        self._run_d, self.run_error = d[self._runs], error[self._runs]

    def size(self, group: int) -> int:
        """Tokens of a group."""
        return int(self._sizes[group])

    @np.errstate(all="ignore")
    def metrics(self, group: int, flips: int, excluded: int) -> Metrics:
        """Of one group, with its counts of router flips and of tokens that were left out."""

        def of(name: str) -> float:
            return float(self._found[name][group])

        p50, p95, p99 = self._found["size percentiles"][group] if self._sizes[group] else (np.nan,) * 3
        runs = slice(*self._runs_of[group])
        run_d, run_error = self._run_d[runs], self.run_error[runs]
        ratio = np.float64(of("ratio mean"))  # numpy's, because Python's own floats raise on overflow
        return Metrics(
            tokens=int(self._sizes[group]),
            logprob_abs_diff_mean=of("size mean"),
            logprob_abs_diff_max=of("size max"),
            logprob_abs_diff_p50=float(p50),
            logprob_abs_diff_p95=float(p95),
            logprob_abs_diff_p99=float(p99),
            token_mult_prob_error=of("mult_prob mean"),
            gen_kl_error=of("gen_kl mean"),
            policy_kl_error=of("policy_kl mean"),
            js_divergence_error=0.5 * of("js_train mean") + 0.5 * of("js_rollout mean"),
            rollout_probs_diff_mean=of("probs_diff mean"),
            rollout_probs_diff_max=of("probs_diff max"),
            rollout_probs_diff_std=of("probs_diff std"),
            chi2_token=of("ratio_squared mean") - 1,
            chi2_seq=float(_mean(np.exp(2 * run_d)) - 1) if len(run_d) else float("nan"),
            ess=float(ratio * ratio / np.float64(of("ratio_squared mean"))),
            seq_mult_prob_error_mean=float(_mean(run_error)) if len(run_d) else float("nan"),
            seq_mult_prob_error_max=float(np.max(run_error)) if len(run_d) else float("nan"),
            router_flips=flips,
            excluded_tokens=excluded,
        )


# NaN, infinity and overflow are findings that the figures must show, not accidents to warn of.
@np.errstate(all="ignore")
def reduce(lr: Array, lt: Array, groupings: Sequence[Grouping]) -> list[GroupFigures]:
    """The figures of tokens, grouped in each of several ways.

    One term after the other, each of them for all groupings: no more than a few arrays are alive at a time, and these
    take turns in the same memory. Fresh pages would cost more than the arithmetic.
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
    """What each token adds to the figures: they are means and maxima of these."""
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


def _percentiles(values: Array) -> list[float]:
    return percentiles(values, (50, 95, 99))


def edges_of(sizes: Index | NDArray[np.bool_]) -> Index:
    """Where things of these sizes, one after the other, begin and end: [n + 1]."""
    result = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=result[1:])
    return result


def _pairs(edges: Index) -> list[tuple[int, int]]:
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


def _mean(values: Array) -> Any:
    """`np.mean`, bit for bit, in half its time where the values are few, as they are in most groups."""
    return np.add.reduce(values) / len(values)


_REDUCTIONS: dict[str, dict[str, Callable[[Array], Any]]] = {
    "size": {"size mean": _mean, "size max": np.maximum.reduce, "size percentiles": _percentiles},
    "mult_prob": {"mult_prob mean": _mean},
    "gen_kl": {"gen_kl mean": _mean},
    "policy_kl": {"policy_kl mean": _mean},
    "js_train": {"js_train mean": _mean},
    "js_rollout": {"js_rollout mean": _mean},
    "probs_diff": {"probs_diff mean": _mean, "probs_diff max": np.maximum.reduce, "probs_diff std": np.std},
    "ratio": {"ratio mean": _mean},
    "ratio_squared": {"ratio_squared mean": _mean},
}
