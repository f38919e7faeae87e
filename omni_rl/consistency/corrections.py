"""Weights for the policy gradient that correct for the difference between the policy that sampled and the one that
learns.

rho = exp(lt - lr) is the importance ratio of a sampled token, `lt` the trainer's logprob, `lr` the rollout engine's.
Shapes: N tokens of S sequences, one after the other; `offsets` int64 [S + 1], sequence s is [offsets[s], offsets[s+1]).
A token whose ratio is NaN gets weight 0: nothing is learnt from what cannot be weighed.
"""

from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from omni_rl.errors import ConfigError

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Offsets = NDArray[np.int64]

Method = Literal["none", "tis", "mis", "icepop", "sequence_tis", "sequence_mis", "geometric"]
Value = TypeVar("Value", bound=np.generic)
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class Correction:
    """Which weights are applied, and their bounds.

    `cap` bounds `tis`, `mis` and their sequence forms (C = 2: Yao et al. 2025, verl); [`low`, `high`] is the interval
    of `icepop` (0.5 to 5: Ring-1T's report); [`geometric_low`, `geometric_high`] that of `geometric` (0.99 to 1.01:
    SkyRL). `veto` masks a whole sequence with a token whose ratio is below it (verl's token veto; None: no veto).
    """

    method: Method = "tis"
    cap: float = 2.0
    low: float = 0.5
    high: float = 5.0
    geometric_low: float = 0.99
    geometric_high: float = 1.01
    veto: float | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"correction method {self.method!r} is none of {', '.join(METHODS)}")
        if not self.cap >= 1:
            raise ConfigError(f"cap {self.cap} is below 1: it would shrink tokens on which both sides agree")
        for low, high in ((self.low, self.high), (self.geometric_low, self.geometric_high)):
            if not 0 <= low <= 1 <= high:
                raise ConfigError(f"band [{low}, {high}] must hold 1, the ratio of agreement")
        if self.veto is not None and not 0 <= self.veto < 1:
            raise ConfigError(f"veto {self.veto} must be in [0, 1)")


def weights(d: Array, offsets: Offsets, mask: Mask, correction: Correction) -> Array:
    """Return the weight of each token, float64 [N]; 0 where `mask` is False. `d` = lt - lr, float64 [N]."""
    with np.errstate(over="ignore"):  # a ratio may well be infinite: it is capped or masked below
        result = _rule(d, offsets, mask, correction)
    if correction.veto is not None:
        result = np.where(spread(vetoed(d, offsets, mask, correction.veto), offsets), 0.0, result)
    return np.where(mask & ~np.isnan(d), result, 0.0)


def truncated(d: Array, cap: float) -> Array:
    """Return min(rho, C) of each token, which is TIS: Yao et al., "Your Efficient RL Framework Secretly Brings You
    Off-Policy RL Training", 2025."""
    result: Array = np.minimum(np.exp(d), cap)
    return result


def masked(d: Array, cap: float) -> Array:
    """Return rho where rho <= C, else 0, which is MIS: Liu et al., "When Speed Kills Stability", 2025."""
    ratio = np.exp(d)
    return np.where(ratio <= cap, ratio, 0.0)


def icepop(d: Array, low: float, high: float) -> Array:
    """Return rho where it lies in [low, high], else 0: IcePop, Ling team, "Small Leak Can Sink a Great Ship", 2025."""
    ratio = np.exp(d)
    return np.where((ratio >= low) & (ratio <= high), ratio, 0.0)


def sequence_sums(d: Array, offsets: Offsets, mask: Mask) -> Array:
    """Return the sum of d over each sequence's unmasked tokens, float64 [S]: the log of the sequence's ratio."""
    # The sentinel lets a trailing empty sequence start at N; reduceat gives an empty one its next element, so clear it.
    summed = np.add.reduceat(np.append(np.where(mask, d, 0.0), 0.0), offsets[:-1])
    return np.where(np.diff(offsets) > 0, summed, 0.0)


def sequence_means(d: Array, offsets: Offsets, mask: Mask) -> Array:
    """Return the mean of d over each sequence's unmasked tokens, float64 [S], or 0 where it has none: the log of the
    geometric mean of its ratios."""
    counts = sequence_sums(np.ones_like(d), offsets, mask)
    result: Array = sequence_sums(d, offsets, mask) / np.maximum(counts, 1.0)
    return result


def vetoed(d: Array, offsets: Offsets, mask: Mask, threshold: float) -> Mask:
    """Return which sequences [S] have a token whose ratio is below `threshold`: verl's
    `rollout_token_veto_threshold`."""
    with np.errstate(over="ignore"):
        below = mask & (np.exp(d) < threshold)
    return sequence_sums(below.astype(np.float64), offsets, mask) > 0


def spread(values: NDArray[Value], offsets: Offsets) -> NDArray[Value]:
    """Repeat the value of each sequence [S] for each of its tokens [N]."""
    return np.repeat(values, np.diff(offsets))


def _rule(d: Array, offsets: Offsets, mask: Mask, correction: Correction) -> Array:
    """Return the weight that the method gives each token, whether its sequence is vetoed or not."""
    match correction.method:
        case "none":
            return np.ones_like(d)
        case "tis":
            return truncated(d, correction.cap)
        case "mis":
            return masked(d, correction.cap)
        case "icepop":
            return icepop(d, correction.low, correction.high)
        case "sequence_tis":
            return spread(truncated(sequence_sums(d, offsets, mask), correction.cap), offsets)
        case "sequence_mis":
            return spread(masked(sequence_sums(d, offsets, mask), correction.cap), offsets)
        case "geometric":  # SkyRL's geometric sequence mask
            ratio = np.exp(sequence_means(d, offsets, mask))
            inside = (ratio >= correction.geometric_low) & (ratio <= correction.geometric_high)
            return spread(inside.astype(np.float64), offsets)
