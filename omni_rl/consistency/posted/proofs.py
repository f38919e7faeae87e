"""Checks of what a step's records say of both sides: weight versions, digests of media tensors and of prompts.

A difference that the records state is reported even where the logprobs are close. It is the cause where the answers
that it names are the ones that are off.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.evidence import Check, Finding, TensorSeen, named
from omni_rl.consistency.posted.step import Index, PostedStep, Spans
from omni_rl.counting import agreeing, counted

TWICE = 2.0
"""How many times further apart than all others the named answers are, at least, where what names them is the cause."""
_NUMBERED = re.compile(r"(?P<name>(.*\D)?)(?P<number>\d+)")


def versions(step: PostedStep, noise: float, lag: int | None = None) -> Finding:
    """Check whether the weights that sampled are those that scored.

    `lag` is how many versions the engine may be behind, as the run said; None: it said nothing. Then a lag that most
    answers share is taken for an asynchronous run's, as long as their logprobs are close.
    """
    spans, scored = step.proofs.sampled_by, step.proofs.scored_by
    if spans is None or scored is None:
        return Finding(Check.VERSIONS, "not_done", "the records do not say which weights sampled and scored")
    behind = _behind(spans, scored)
    if not len(behind):
        return Finding(Check.VERSIONS, "clear", "the same weight version sampled and scored")
    tokens = np.zeros(len(step.rollout), np.bool_)
    for s in behind.tolist():
        start = int(step.offsets[spans.answers[s]])
        tokens[start + spans.first[s] : start + spans.last[s]] = True
    late = np.unique(spans.answers[behind])
    off, rest = step.apart(tokens)
    explains = off > TWICE * rest and (off > noise or (rest > 0 and lag is None))
    numbers = {"answers": float(len(late)), "abs_diff_mean": off, "abs_diff_mean_others": rest}
    if not explains and not _is_told(step, spans, behind, scored, lag):
        return Finding(
            Check.VERSIONS, "clear", "the engine is behind by the lag of an asynchronous run", numbers=numbers
        )
    names = [step.samples[n] for n in late]
    first = int(behind[0])
    return Finding(
        Check.VERSIONS,
        "explains" if explains else "suspicious",
        f"{len(late)} of {counted(len(step), 'answer')} ({named(names)}) {agreeing(len(late), 'was', 'were')} "
        f"sampled under {spans.versions[first]} and scored with {scored[spans.answers[first]]}: "
        f"{agreeing(len(late), 'its', 'their')} mean abs d is {off:.2g}"
        + (f", that of the others {rest:.2g}" if rest else "")
        + "; sync the engine's weights, or state the lag that the run allows",
        Cause.STALE_WEIGHTS,
        numbers,
        samples=tuple(names[:8]),
    )


def _behind(spans: Spans, scored: Sequence[str]) -> Index:
    """Return the numbers of the spans that other weights sampled than scored."""
    return np.array(
        [
            s
            for s, (answer, version) in enumerate(zip(spans.answers.tolist(), spans.versions, strict=True))
            if version and scored[answer] and version != scored[answer]
        ],
        np.int64,
    )


def _is_told(step: PostedStep, spans: Spans, behind: Index, scored: Sequence[str], lag: int | None) -> bool:
    """Return whether a lag is reported although the logprobs are close: one over what the run allows; or, where the run
    says nothing, a few answers by weights that no other answer of the step had."""
    if lag is not None:
        each = [_distance(spans.versions[s], scored[spans.answers[s]]) for s in behind.tolist()]
        # At a distance of 0 one number stands for two digests, which no lag explains.
        return any(distance is None or not 0 < distance <= lag for distance in each)
    late = set(spans.answers[behind].tolist())
    others = {
        version for answer, version in zip(spans.answers.tolist(), spans.versions, strict=True) if answer not in late
    }
    alone = any(spans.versions[s] not in others and _whole(step, spans, s) for s in behind.tolist())
    return len(late) < len(step) / 2 and alone


def _whole(step: PostedStep, spans: Spans, s: int) -> bool:
    """Return whether a span is its whole answer, which then did not merely begin before an update."""
    answer = int(spans.answers[s])
    return int(spans.last[s] - spans.first[s]) == int(step.offsets[answer + 1] - step.offsets[answer])


def _distance(sampled: str, scored: str) -> int | None:
    """Return how many versions the sampled one is behind the scored one, negative where it is ahead: of two numbers, of
    two names that differ in the number at their end alone, as step-8 and step-9, or of two of our own,
    run/attempt/number/digest; None for names of another form."""
    if sampled.count("/") == scored.count("/") == 3:
        sampled, scored = sampled.rsplit("/", 1)[0], scored.rsplit("/", 1)[0]
    ours, theirs = _NUMBERED.fullmatch(sampled), _NUMBERED.fullmatch(scored)
    if ours is None or theirs is None or ours["name"] != theirs["name"]:
        return None
    return int(theirs["number"]) - int(ours["number"])


def media(step: PostedStep, noise: float) -> Finding:
    """Check whether both models received the media tensors that were rendered; the same ones, where the records do not
    say what was rendered."""
    seen, apart = step.proofs.tensors, step.proofs.tensors_apart
    if not seen:
        return Finding(Check.MEDIA, "not_done", "the records have no digests of media tensors")
    if not apart:
        return Finding(
            Check.MEDIA,
            "clear",
            f"all {counted(seen, 'media tensor has', 'media tensors have')} one digest on both sides",
            numbers={"tensors": seen},
        )
    n, tensor = apart[0]
    found = _named(
        step,
        list(dict.fromkeys(number for number, _ in apart)),
        noise,
        Check.MEDIA,
        Cause.MEDIA_MISMATCH,
        f"{tensor.modality} {tensor.item} of sample {step.samples[n]}: {_apart(tensor)}",
        "hand both sides the same rendered tensors",
    )
    return replace(
        found,
        numbers={**found.numbers, "tensors_apart": len(apart)},
        tensors=tuple(dict.fromkeys(t.name for _, t in apart)),
        modalities=tuple(dict.fromkeys(t.modality for _, t in apart)),
    )


def _apart(tensor: TensorSeen) -> str:
    """Return what is wrong with a tensor whose digests are not the same on both sides, for a sentence."""
    sides = [("the engine", tensor.engine), ("the trainer", tensor.train)]
    got = " and ".join(side for side, digest in sides if digest is not None)
    lacks = " and ".join(side for side, digest in sides if digest is None)
    if lacks:
        told = f"{got} got" if tensor.rendered is None else "was rendered"
        return f"{lacks} did not get the {tensor.name} that {told}"
    if tensor.rendered is None:
        return f"{got} got different {tensor.name}"
    other = " and ".join(side for side, digest in sides if digest != tensor.rendered)
    return f"{other} got another tensor than the {tensor.name} that was rendered"


def prompt(step: PostedStep, noise: float) -> Finding:
    """Check whether both sides ran the same prompt, by its digest on each."""
    each = step.proofs.prompts or ()
    known = [n for n, (engine, trainer) in enumerate(each) if engine is not None and trainer is not None]
    if not known:
        return Finding(Check.PROMPT, "not_done", "the records have no digests of the prompts that were run")
    answers = [n for n in known if each[n][0] != each[n][1]]
    if not answers:
        return Finding(Check.PROMPT, "clear", f"both sides ran the same ids of {counted(len(known), 'prompt')}")
    return _named(
        step,
        answers,
        noise,
        Check.PROMPT,
        Cause.PROMPT_MISMATCH,
        f"the trainer ran other prompts than the engine in {len(answers)} of {counted(len(known), 'answer')}",
        "render each prompt once and hand the result to both",
    )


def dtypes(step: PostedStep, noise: Mapping[str, float]) -> Finding:
    """Check whether both sides computed in one dtype, as they say themselves.

    `noise` is the mean abs d of two correct computations in each dtype. A run that means to use two dtypes need not say
    so: a difference within the finer one's noise is clear.
    """
    said = step.proofs.dtypes
    if said is None or not set(said) <= noise.keys():
        return Finding(Check.ROUNDING, "not_done", "the records do not say in which dtypes both sides computed")
    engine, trainer = said
    finer = min(said, key=noise.__getitem__)
    numbers = {"abs_diff_mean": step.size, "of_the_finer": noise[finer]}
    if engine == trainer or step.size <= noise[finer]:
        return Finding(Check.ROUNDING, "clear", f"both sides are as close as {finer} is", numbers=numbers)
    return Finding(
        Check.ROUNDING,
        "suspicious",
        f"the engine computes in {engine} and the trainer in {trainer}: the mean abs d is {step.size:.2g}, where "
        f"{finer} on both sides leaves {noise[finer]:.2g} at most; compute both in one, or state the two to whoever "
        "watches the run",
        Cause.ROUNDING,
        numbers,
    )


def _named(
    step: PostedStep, answers: Sequence[int], noise: float, check: Check, cause: Cause, what: str, advice: str
) -> Finding:
    """Return the finding for a difference that the records state of some answers: their cause where they are the ones
    that are off."""
    off, rest = step.apart(step.of_answers(answers))
    explains = off > TWICE * rest and (rest > 0 or off > noise)
    names = [step.samples[n] for n in answers]
    return Finding(
        check,
        "explains" if explains else "suspicious",
        f"{what} ({named(names)}): {agreeing(len(names), 'its', 'their')} mean abs d is {off:.2g}"
        + (f", that of the others {rest:.2g}" if rest else "")
        + f"; {advice}",
        cause,
        {"answers": float(len(answers)), "abs_diff_mean": off, "abs_diff_mean_others": rest},
        samples=tuple(names[:8]),
    )
