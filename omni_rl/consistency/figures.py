"""The mismatch figures and their formulas, under the field's names, in float64.

`lr` is the rollout engine's logprob of a sampled token, `lt` the trainer's, d = lt - lr.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

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


def k3(d: Array) -> Array:
    """exp(d) - 1 - d, the low-variance KL estimate of Schulman's note; expm1 keeps it from underflowing to 0."""
    return np.expm1(d) - d


@dataclass(frozen=True)
class Terms:
    """What each token adds to the figures, all float64 [T]: they are means and maxima of these."""

    d: Array
    size: Array
    mult_prob: Array
    gen_kl: Array
    policy_kl: Array
    js_train: Array
    js_rollout: Array
    probs_diff: Array
    ratio: Array
    ratio_squared: Array

    @classmethod
    # NaN, infinity and overflow are findings that the figures must show, not accidents to warn of.
    @np.errstate(all="ignore")
    def of(cls, lr: Array, lt: Array) -> "Terms":
        d = lt - lr
        size = np.abs(d)
        ratio = np.exp(d)
        # log of the mixture's probability of the sampled token; logaddexp does not underflow for rare tokens
        mixture = np.logaddexp(lt, lr) - np.log(2)
        return cls(
            d=d,
            size=size,
            mult_prob=np.exp(size),
            gen_kl=k3(d),
            policy_kl=k3(-d),
            js_train=k3(mixture - lt),
            js_rollout=k3(mixture - lr),
            probs_diff=np.abs(np.exp(lt) - np.exp(lr)),
            ratio=ratio,
            ratio_squared=ratio**2,
        )

    def take(self, tokens: NDArray[np.int64] | slice) -> "Terms":
        """Those of some tokens, in the order given."""
        return Terms(*(getattr(self, field.name)[tokens] for field in fields(self)))

    @np.errstate(all="ignore")
    def by_sequence(self, edges: NDArray[np.int64]) -> tuple[Array, Array]:
        """For S + 1 `edges` between sequences, none of them empty: the sum of d and the mean of `mult_prob`, [S]."""
        bounds = list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
        add = np.add.reduce
        sums = np.array([add(self.d[start:end]) for start, end in bounds], np.float64)
        errors = np.array([add(self.mult_prob[start:end]) / (end - start) for start, end in bounds], np.float64)
        return sums, errors


@np.errstate(all="ignore")
def figures(terms: Terms, sequence_d: Array, sequence_error: Array, flips: int, excluded: int) -> Metrics:
    """Reduce a set of tokens; `sequence_d` and `sequence_error` [S] are `Terms.by_sequence` of the same tokens."""
    size = terms.size
    ratio = np.float64(_over(np.mean, terms.ratio))  # numpy's, because Python's own floats raise on overflow
    p50, p95, p99 = np.percentile(size, (50, 95, 99)) if len(size) else (np.nan,) * 3
    return Metrics(
        tokens=len(size),
        logprob_abs_diff_mean=_over(np.mean, size),
        logprob_abs_diff_max=_over(np.max, size),
        logprob_abs_diff_p50=float(p50),
        logprob_abs_diff_p95=float(p95),
        logprob_abs_diff_p99=float(p99),
        token_mult_prob_error=_over(np.mean, terms.mult_prob),
        gen_kl_error=_over(np.mean, terms.gen_kl),
        policy_kl_error=_over(np.mean, terms.policy_kl),
        js_divergence_error=0.5 * _over(np.mean, terms.js_train) + 0.5 * _over(np.mean, terms.js_rollout),
        rollout_probs_diff_mean=_over(np.mean, terms.probs_diff),
        rollout_probs_diff_max=_over(np.max, terms.probs_diff),
        rollout_probs_diff_std=_over(np.std, terms.probs_diff),
        chi2_token=_over(np.mean, terms.ratio_squared) - 1,
        chi2_seq=_over(np.mean, np.exp(2 * sequence_d)) - 1,
        ess=float(ratio * ratio / np.float64(_over(np.mean, terms.ratio_squared))),
        seq_mult_prob_error_mean=_over(np.mean, sequence_error),
        seq_mult_prob_error_max=_over(np.max, sequence_error),
        router_flips=flips,
        excluded_tokens=excluded,
    )


def _over(reduction: Callable[[Array], np.float64], values: Array) -> float:
    return float(reduction(values)) if len(values) else float("nan")
