"""Checks of single values: NaN and infinity, what no logprob can be, and what stands for a token nobody sampled."""

import numpy as np

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.evidence import Check, Finding
from omni_rl.consistency.posted.copies import is_floor
from omni_rl.consistency.posted.step import Array, Index, Mask, PostedStep
from omni_rl.counting import agreeing, counted

ABOVE_ZERO = 1e-3
"""How far above 0 a value is no logprob. A float32 log-softmax never is above 0; logit less logsumexp may be by its
last bit."""
CONSTANT_TOKENS = 64
"""How many counted tokens with one and the same logprob are no distribution's."""
FAR = 1.0
"""The nats that no rounding makes of a token that one side calls certain."""
NEAR = 0.05
APART = 0.05
"""The nats that one token at least must differ by before a constant side is a fault: a policy that has converged is
certain of every token, where one side rounds to 0.0 what the other has as -1e-3, in bfloat16."""
REPEATED = 4
"""How many far tokens with one exact value are a placeholder, unless the value is 0.0, where one is enough: a token of
probability 1 to the last bit has no rival within 16 nats."""
MOST = 0.7
"""The share of the far tokens that must be the placeholder's: after a shift or a swap, certain tokens are far too."""


def nonfinite(step: PostedStep) -> Finding:
    """Check for logprobs of counted tokens that are NaN or infinite: whose they are, where, and how many."""
    said, numbers, first = [], {}, []
    for side, values, _ in step.sides:
        for what, wrong in (("NaN", np.isnan(values)), ("infinite", np.isinf(values))):
            at = np.flatnonzero(wrong & step.counted)
            if len(at):
                said.append(f"{len(at)} of the {side}'s logprobs {agreeing(len(at), 'is', 'are')} {what}")
                numbers[f"{side}_{what.lower()}"] = float(len(at))
                first.append(int(at[0]))
    if not said:
        return Finding(Check.VALUES, "clear", "every counted logprob is a finite number")
    return Finding(
        Check.VALUES,
        "explains",
        f"{', and '.join(said)} (first: {step.place(min(first))}), of "
        f"{counted(int(step.counted.sum()), 'token that counts', 'tokens that count')}; "
        "look at that side's logits there before anything is learnt from the step",
        Cause.NONFINITE_LOGPROBS,
        numbers,
        samples=tuple(dict.fromkeys(step.samples[step.answer[at]] for at in first)),
    )


def impossible(step: PostedStep) -> Finding:
    """Check for counted values that no logprob of a sampled token can have: above zero, or one number for every
    token."""
    for side, values, other in step.sides:
        above = np.flatnonzero(step.judged & (values > ABOVE_ZERO))
        if len(above):
            return _impossible(
                step,
                f"{len(above)} of the {side}'s {step.tokens} logprobs are above 0, the first {values[above[0]]:.4g} "
                f"({step.place(int(above[0]))}): no probability is above 1"
                + _reading(values[step.judged], other[step.judged]),
                {"tokens": float(len(above)), "first": float(values[above[0]])},
                above,
            )
    for side, every, others in step.sides:
        values, other = every[step.judged], others[step.judged]
        constant = len(values) >= CONSTANT_TOKENS and np.ptp(values) == 0 and np.ptp(other) > 0
        if constant and np.abs(other - values).max() > APART:
            return _impossible(
                step,
                f"all {len(values)} of the {side}'s logprobs are {values[0]:g}: they were never computed, or were "
                "replaced on their way (NeMo RL's force_on_policy_ratio posts zeros)",
                {"tokens": float(len(values)), "value": float(values[0])},
                np.flatnonzero(step.judged)[:1],
            )
    return Finding(Check.IMPOSSIBLE, "clear", "every counted logprob is at most 0, and they differ")


def _impossible(step: PostedStep, sentence: str, numbers: dict[str, float], at: Index) -> Finding:
    names = tuple(dict.fromkeys(step.samples[n] for n in step.answer[at]))
    return Finding(Check.IMPOSSIBLE, "explains", sentence, Cause.IMPOSSIBLE_LOGPROBS, numbers, samples=names)


def _reading(values: Array, other: Array) -> str:
    """Say what values above 0 would be if they were not logprobs, by the other side's."""
    before = float(np.abs(values - other).mean())
    if float(np.abs(-values - other).mean()) <= 0.2 * before:
        return "; with the other sign they agree: they are negative log likelihoods"
    if values.min() >= 0 and values.max() <= 1 + ABOVE_ZERO:
        logs = np.log(np.maximum(values, 1e-300))
        if float(np.abs(logs - other).mean()) <= 0.2 * before:
            return "; their logarithms agree: they are probabilities"
    return ""


def placeholders(step: PostedStep) -> Finding:
    """Check for tokens that count although one side has a placeholder where the other has a logprob: a tool's output,
    an EOS that was appended, a mask that begins late. A certain token's logprob is exactly 0.0 too, but nearly so on
    both sides."""
    far = step.judged & (np.abs(step.d) > FAR)
    for (side, values, others), (other, _, _) in (step.sides, step.sides[::-1]):
        found = _placeholder(values[far])
        if found is None or (found < 0 and is_floor(values[step.judged], others[step.judged])):
            continue
        named_tokens = step.judged & (values == found) & (np.abs(step.d) > NEAR)
        if int((named_tokens & far).sum()) < MOST * int(far.sum()):
            continue
        rest = step.without(named_tokens)
        answers = np.unique(step.answer[named_tokens])
        number = int(named_tokens.sum())
        them = agreeing(number, "it", "them")
        return Finding(
            Check.PLACEHOLDERS,
            "explains",
            f"{counted(number, 'token')} of {counted(len(answers), 'answer')} {agreeing(number, 'counts', 'count')} "
            f"although the {side} has the placeholder {found:g} for {them} where the {other} has a logprob (first: "
            f"{step.place(int(np.flatnonzero(named_tokens)[0]))}{_where(step, named_tokens)}): nobody sampled "
            f"{them}; mask {them}. Without {them} the mean abs d is {rest.size:.2g}",
            Cause.LOSS_MASK,
            {"tokens": float(named_tokens.sum()), "value": float(found), "abs_diff_mean": step.size, "left": rest.size},
            samples=tuple(step.samples[n] for n in answers[:8]),
        )
    return Finding(Check.PLACEHOLDERS, "clear", "no counted token has a placeholder for a logprob")


def _placeholder(far: Array) -> float | None:
    """Return the value that stands for a logprob among those of far tokens: 0.0, or one that comes again and again."""
    if np.any(far == 0.0):
        return 0.0
    if len(far) < REPEATED:
        return None
    values, counts = np.unique(far, return_counts=True)
    most = int(counts.argmax())
    return float(values[most]) if counts[most] >= max(REPEATED, len(far) // 2) else None


def _where(step: PostedStep, tokens: Mask) -> str:
    last = np.zeros(len(step.rollout), np.bool_)
    filled = np.diff(step.offsets) > 0
    last[step.offsets[1:][filled] - 1] = True
    return "; each the last of its answer" if not np.any(tokens & ~last) else ""
