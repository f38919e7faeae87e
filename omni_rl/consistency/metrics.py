"""Mismatch metrics under the field's names, reduced in float64.

`lr` is the rollout engine's logprob of a sampled token, `lt` the trainer's, d = lt - lr.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.records import SampleRecord
from omni_rl.consistency.router import Flip, first_flip, tokens_before

Array = NDArray[np.float64]


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


@dataclass(frozen=True)
class Comparison:
    """Metrics of a set of sequences, with the first router flip of each sequence that has one."""

    metrics: Metrics
    flips: tuple[Flip, ...]


def k3(d: Array) -> Array:
    """exp(d) - 1 - d, the low-variance KL estimate of Schulman's note; expm1 keeps it from underflowing to 0."""
    return np.expm1(d) - d


def compare(records: Sequence[SampleRecord], *, exclude_after_flip: bool = True) -> Comparison:
    """Reduce sequences to metrics.

    With `exclude_after_flip` a sequence's tokens from its first router flip on are left out and counted in
    `excluded_tokens`; without, all tokens stay in and flips are only counted. NaN or infinite logprobs come through
    as NaN or infinite metrics: they are never dropped.
    """
    flips = [first_flip(record) for record in records]
    kept = [
        tokens_before(flip, record) if exclude_after_flip else len(record.rollout_logprobs)
        for flip, record in zip(flips, records, strict=True)
    ]
    rollout = [record.rollout_logprobs[:n] for record, n in zip(records, kept, strict=True)]
    train = [record.train_logprobs[:n] for record, n in zip(records, kept, strict=True)]
    excluded = sum(len(record.rollout_logprobs) for record in records) - sum(kept)
    found = tuple(flip for flip in flips if flip is not None)
    return Comparison(_reduce(rollout, train, len(found), excluded), found)


def by_kind(records: Sequence[SampleRecord], *, exclude_after_flip: bool = True) -> dict[str, Comparison]:
    """`compare` for each kind of prompt, in order of first appearance."""
    kinds = dict.fromkeys(record.kind for record in records)
    return {
        kind: compare([r for r in records if r.kind == kind], exclude_after_flip=exclude_after_flip) for kind in kinds
    }


def by_sequence(records: Sequence[SampleRecord], *, exclude_after_flip: bool = True) -> dict[str, Comparison]:
    """`compare` for each sequence, by its sample name."""
    return {record.sample: compare([record], exclude_after_flip=exclude_after_flip) for record in records}


def position_bins(longest: int) -> list[tuple[int, int]]:
    """Bins of answer positions that double: [0, 8), [8, 16), [16, 32), ... until `longest` is inside."""
    edges = [0, 8]
    while edges[-1] < longest:
        edges.append(edges[-1] * 2)
    return list(pairwise(edges))


def by_position(records: Sequence[SampleRecord], *, exclude_after_flip: bool = True) -> dict[tuple[int, int], Metrics]:
    """Metrics of the tokens in each bin of `position_bins`; flips are counted in the bin that they start in."""
    flips = [first_flip(record) for record in records]
    longest = max((len(record.rollout_logprobs) for record in records), default=0)
    result = {}
    for start, end in position_bins(longest):
        rollout, train, excluded, started = [], [], 0, 0
        for record, flip in zip(records, flips, strict=True):
            kept = tokens_before(flip, record) if exclude_after_flip else len(record.rollout_logprobs)
            rollout.append(record.rollout_logprobs[start : min(end, kept)])
            train.append(record.train_logprobs[start : min(end, kept)])
            excluded += len(record.rollout_logprobs[max(start, kept) : end])
            started += flip is not None and start <= tokens_before(flip, record) < end
        result[start, end] = _reduce(rollout, train, started, excluded)
    return result


# NaN, infinity and overflow are findings that the figures must show, not accidents to warn of.
@np.errstate(all="ignore")
def _reduce(rollout: Sequence[Array], train: Sequence[Array], flips: int, excluded: int) -> Metrics:
    lr = np.concatenate([*rollout, np.empty(0)]).astype(np.float64)
    lt = np.concatenate([*train, np.empty(0)]).astype(np.float64)
    d = lt - lr
    size = np.abs(d)
    ratio = np.exp(d)
    sequence_d = np.array([(t - r).sum() for r, t in zip(rollout, train, strict=True) if len(r)])
    sequence_error = np.array([np.exp(np.abs(t - r)).mean() for r, t in zip(rollout, train, strict=True) if len(r)])
    probability_gap = np.abs(np.exp(lt) - np.exp(lr))
    # log of the mixture's probability of the sampled token; logaddexp does not underflow for rare tokens
    mixture = np.logaddexp(lt, lr) - np.log(2)
    p50, p95, p99 = np.percentile(size, (50, 95, 99)) if len(size) else (np.nan,) * 3
    return Metrics(
        tokens=len(d),
        logprob_abs_diff_mean=_over(np.mean, size),
        logprob_abs_diff_max=_over(np.max, size),
        logprob_abs_diff_p50=float(p50),
        logprob_abs_diff_p95=float(p95),
        logprob_abs_diff_p99=float(p99),
        token_mult_prob_error=_over(np.mean, np.exp(size)),
        gen_kl_error=_over(np.mean, k3(d)),
        policy_kl_error=_over(np.mean, k3(-d)),
        js_divergence_error=0.5 * _over(np.mean, k3(mixture - lt)) + 0.5 * _over(np.mean, k3(mixture - lr)),
        rollout_probs_diff_mean=_over(np.mean, probability_gap),
        rollout_probs_diff_max=_over(np.max, probability_gap),
        rollout_probs_diff_std=_over(np.std, probability_gap),
        chi2_token=_over(np.mean, ratio**2) - 1,
        chi2_seq=_over(np.mean, np.exp(2 * sequence_d)) - 1,
        ess=_over(np.mean, ratio) ** 2 / _over(np.mean, ratio**2),
        seq_mult_prob_error_mean=_over(np.mean, sequence_error),
        seq_mult_prob_error_max=_over(np.max, sequence_error),
        router_flips=flips,
        excluded_tokens=excluded,
    )


def _over(reduction: Callable[[Array], np.float64], values: Array) -> float:
    return float(reduction(values)) if len(values) else float("nan")
