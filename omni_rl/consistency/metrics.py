"""Mismatch metrics under the field's names, reduced in float64.

`lr` is the rollout engine's logprob of a sampled token, `lt` the trainer's, d = lt - lr.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.records import SampleRecord
from omni_rl.consistency.router import Flip, LeaveOut, first_flip, kept

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


def compare(records: Sequence[SampleRecord], *, leave_out: LeaveOut = "after_flip") -> Comparison:
    """Reduce sequences to metrics; what `leave_out` drops is counted in `excluded_tokens`.

    NaN or infinite logprobs come through as NaN or infinite metrics: they are never dropped.
    """
    flips = tuple(flip for record in records if (flip := first_flip(record)) is not None)
    return Comparison(_reduce(records, [kept(record, leave_out) for record in records], len(flips)), flips)


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
    masks = [kept(record, leave_out) for record in records]
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


# NaN, infinity and overflow are findings that the figures must show, not accidents to warn of.
@np.errstate(all="ignore")
def _reduce(records: Sequence[SampleRecord], masks: Sequence[NDArray[np.bool_]], flips: int) -> Metrics:
    rollout = [record.rollout_logprobs[mask] for record, mask in zip(records, masks, strict=True)]
    train = [record.train_logprobs[mask] for record, mask in zip(records, masks, strict=True)]
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
        excluded_tokens=sum(int((~mask).sum()) for mask in masks),
    )


def _over(reduction: Callable[[Array], np.float64], values: Array) -> float:
    return float(reduction(values)) if len(values) else float("nan")
