"""What entropies and the engine's likeliest ids say, where they were posted: which entry a logprob was taken from,
which ids could not be sampled, and whether two distributions are one."""

import numpy as np

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.evidence import Check, Finding
from omni_rl.consistency.posted.step import PostedStep
from omni_rl.counting import counted

FEWEST = 8
"""The fewest tokens that must be off before what all of them have in common means something."""
CUT = 4
"""The fewest tokens with an id that could not be sampled: each is proof, and so many are no accident."""
LEFT = 0.2
"""The share of the difference that may be left where a cause explains it."""
SAME = 1e-3
"""By how much one logprob may differ from itself, as it is written in two places, in nats."""
FAR = 20.0
"""How many times the noise's mean abs d a token is off where no rounding can be the reason."""
CARRIED = 0.6
"""The share of the difference that lies in far tokens where these explain it."""
BROKEN = 0.1
"""The share of the tokens that may break a rule, above which the rule does not hold."""
OPEN = 0.1
"""The entropy, in nats, below which a token has nothing to choose from."""
ONE_SIDED = 0.3
"""How much more of the difference lies below zero than above, as a share, where support was lost."""


def wrong_entry(step: PostedStep, noise: float) -> Finding:
    """Check whether the engine's logprobs are those of other ids than were posted: its own list of likeliest ids has
    another number for the posted ones. `noise` is the mean abs d of two correct computations."""
    if step.top is None or step.ids is None:
        return Finding(Check.TRANSFORM, "not_done", "the records do not have the engine's likeliest ids")
    entry = step.top.ids == step.ids[:, None]
    listed = step.judged & entry.any(1)
    own = np.where(entry, step.top.logprobs, -np.inf).max(1)
    wrong = listed & (np.abs(own - step.rollout) > SAME + noise)
    clear = Finding(Check.TRANSFORM, "clear", "the engine's logprobs are those that it lists for the posted ids")
    if int(wrong.sum()) < FEWEST:
        return clear
    before = float(np.abs(step.d[listed]).sum())
    left = float(np.abs(step.train[listed] - own[listed]).sum())
    if left > LEFT * before and left > noise * int(listed.sum()):
        return clear
    first = np.abs(step.top.logprobs.max(1) - step.rollout) <= SAME
    of_first = " (the most likely one's)" if (first[wrong].mean() > 1 - BROKEN) else ""
    at = int(np.flatnonzero(wrong)[0])
    return Finding(
        Check.TRANSFORM,
        "explains",
        f"{int(wrong.sum())} of {int(listed.sum())} of the engine's logprobs are another id's{of_first} than the "
        f"posted one's, by its own list of likeliest ids (first: {step.place(at)}, {step.rollout[at]:.3g} for "
        f"{own[at]:.3g}): taken from there, the mean abs d of these tokens falls from {before / listed.sum():.2g} to "
        f"{left / listed.sum():.2g}; take the sampled id's entry",
        Cause.LOGPROB_POSTPROCESSING,
        {"tokens": float(wrong.sum()), "abs_diff_mean": step.size},
    )


def other_ids(step: PostedStep, noise: float) -> Finding:
    """Check whether both sides have one distribution where their logprobs are far apart: then these are of different
    ids, whatever the weights, the media, the temperature and the support are."""
    if step.entropies is None:
        return Finding(Check.TRANSFORM, "not_done", "the records do not have both sides' entropies")
    far = np.abs(step.d) > FAR * noise
    clear = Finding(Check.TRANSFORM, "clear", "the two sides' distributions differ where their logprobs do")
    if int(far.sum()) < FEWEST or float(np.abs(step.d[far]).sum()) < CARRIED * float(np.abs(step.d).sum()):
        return clear
    engine, trainer = step.entropies
    apart = float(np.quantile(np.abs(engine - trainer)[far], 1 - BROKEN))
    if apart > 2 * noise + SAME:
        return clear
    return Finding(
        Check.TRANSFORM,
        "explains",
        f"where the logprobs are far apart ({counted(int(far.sum()), 'token')}), both sides have the same entropy to "
        f"within {apart:.2g} nats, so that they have one distribution: their logprobs are those of different ids; "
        "look at which id's entry each side takes",
        Cause.LOGPROB_POSTPROCESSING,
        {"tokens": float(far.sum()), "entropy_apart": apart, "abs_diff_mean": step.size},
    )


def cut_off(step: PostedStep, noise: float) -> Finding:
    """Check whether ids that could not be sampled stand among the engine's likeliest ones, at the tokens that are less
    likely at the trainer: no softmax gives a probability of 0, and a sampler that cuts does."""
    clear = Finding(Check.SUPPORT, "clear", "the engine's likeliest ids could all be sampled")
    if step.top is None:
        return Finding(Check.SUPPORT, "not_done", "the records do not have the engine's likeliest ids")
    cut = step.judged & np.isneginf(step.top.logprobs).any(1)
    inside, rest = np.abs(step.d[cut]), step.without(cut)
    carried = float(inside.sum()) >= CARRIED * float(np.abs(step.d).sum())
    if int(cut.sum()) < CUT or not (carried or rest.size <= noise) or -step.d[cut].sum() < ONE_SIDED * inside.sum():
        return clear
    share = float(cut.sum()) / step.tokens
    return Finding(
        Check.SUPPORT,
        "explains",
        f"at {share:.1%} of the tokens the engine's own list of {step.top.ids.shape[1]} likeliest ids ends in ids that "
        f"could not be sampled, and there the trainer's logprobs are lower by {-step.d[cut].mean():.2g} (elsewhere the "
        f"mean abs d is {rest.size:.2g}): the engine sampled from part of the vocabulary (top-p, top-k, min-p, banned "
        "tokens, guided decoding) and normalised over it; switch that off, or give the trainer the same cut",
        Cause.SAMPLING_SUPPORT,
        {"share": share, "abs_diff_mean": step.size, "left": rest.size},
    )


def one_way(step: PostedStep) -> float | None:
    """Return the share of the open tokens at which the same side has the higher entropy: nearly all where one
    temperature is higher, or support was lost. None where entropies were not posted, or too few tokens are open."""
    if step.entropies is None:
        return None
    engine, trainer = (side[step.judged] for side in step.entropies)
    some = np.maximum(engine, trainer) > OPEN
    if int(some.sum()) < FEWEST:
        return None
    above = float((trainer > engine)[some].mean())
    return max(above, 1 - above)
