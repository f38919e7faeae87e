"""Every cause in one table: what it means, what the service does about it, and what a person does.

The operating guide's sections and its table of actions are made of this one (`tools/reference.py`), so that the page,
the pager and the guide never give two answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from omni_rl.consistency.limits import Severity


class Cause(StrEnum):
    """Why the two policies parted. It is `unknown` also where the search for the cause ran out of time."""

    STALE_WEIGHTS = "stale_weights"
    CORRUPT_WEIGHTS = "corrupt_weights"
    STALE_CACHE = "stale_cache"
    MEDIA_MISMATCH = "media_mismatch"
    PROMPT_MISMATCH = "prompt_mismatch"
    LOGPROB_POSTPROCESSING = "logprob_postprocessing"
    TOKEN_SHIFT = "token_shift"  # noqa: S105 - no password
    SAMPLING_SUPPORT = "sampling_support"
    SAMPLE_PAIRING = "sample_pairing"
    LOSS_MASK = "loss_mask"
    NONFINITE_LOGPROBS = "nonfinite_logprobs"
    IMPOSSIBLE_LOGPROBS = "impossible_logprobs"
    DECODE_PREFILL = "decode_prefill"
    BATCH_VARIANCE = "batch_variance"
    TRAIN_PACKING = "train_packing"
    KERNEL = "kernel"
    ROUTER = "router"
    ROUNDING = "rounding"
    UNKNOWN = "unknown"


class Action(StrEnum):
    """What is done about a cause. none: it is recorded, nothing more. resync: the weights are sent again, then checked.
    halt: the gate stays closed until a person opens it. mask: the loss gets weights, and the run goes on."""

    NONE = "none"
    MASK = "mask"
    RESYNC = "resync"
    HALT = "halt"


@dataclass(frozen=True)
class CauseGuide:
    """What there is to say of a cause.

    `actions` says what the service does by itself, by the severity of the step, and `remedy` what a person does, where
    the service does not do it itself.
    """

    actions: Mapping[Severity, Action]
    meaning: str
    remedy: str


def _actions(warn: Action, mask: Action, pause: Action) -> Mapping[Severity, Action]:
    return {
        Severity.UNJUDGED: Action.NONE,
        Severity.OK: Action.NONE,
        Severity.WARN: warn,
        Severity.MASK: mask,
        Severity.PAUSE: pause,
    }


# Bringing the weights anew is safe and takes seconds, so it need not wait for worse. A sync resets the caches too.
RESYNCED = _actions(Action.RESYNC, Action.RESYNC, Action.RESYNC)
# No sync repairs what the two sides were given, how logprobs were made from it, or what a pack's answers leak.
HALTED = _actions(Action.NONE, Action.HALT, Action.HALT)
# An engine that disagrees with itself: weights in the loss can bear a little of that.
MASKED_THEN_HALTED = _actions(Action.NONE, Action.MASK, Action.HALT)
MASKED = _actions(Action.NONE, Action.MASK, Action.MASK)
# At PAUSE the weights are sent once; where the difference persists after that, the run halts.
RESYNCED_AT_PAUSE = _actions(Action.NONE, Action.MASK, Action.RESYNC)

CAUSES: Mapping[Cause, CauseGuide] = {
    Cause.STALE_WEIGHTS: CauseGuide(
        RESYNCED,
        "An engine serves another version than the trainer has: the records say so, or the difference grows with every "
        "update while both sides stay proper policies.",
        "Of our own pair nothing: it is resynced once and rechecked. Of your run: look whether updates, or the "
        "adapter, reach the engine.",
    ),
    Cause.CORRUPT_WEIGHTS: CauseGuide(
        RESYNCED,
        "A tensor of an engine is not what was sent, or the trainer's own weights are not those that its version "
        "names; the evidence says which and names it.",
        "Of our own pair nothing: it is resynced. If it returns on the same host, take the host out; if it is the "
        "trainer, look for what writes to the model past its updates.",
    ),
    Cause.STALE_CACHE: CauseGuide(
        RESYNCED,
        "Cached features or prefixes are of older weights.",
        "Of our own pair nothing: a sync resets the caches. If it returns, the engine was updated past the service.",
    ),
    Cause.MEDIA_MISMATCH: CauseGuide(
        HALTED,
        "The two sides saw other pixels, sounds or frames; the digests differ.",
        "Find who preprocesses twice, or with other settings (tiling, sampling rate, frames). Resume when both take "
        "one path.",
    ),
    Cause.PROMPT_MISMATCH: CauseGuide(
        HALTED,
        "The ids of the prompt differ.",
        "Compare chat template, tokenizer and placeholder expansion of both sides; expand once.",
    ),
    Cause.LOGPROB_POSTPROCESSING: CauseGuide(
        HALTED,
        "One side's logprobs are a function of the right ones: another temperature, a penalty, the most likely "
        "token's, another base.",
        'Let both sides report at the sampling temperature (`logprobs_mode="processed_logprobs"` in vLLM), without '
        "penalties; take the sampled id's entry, as a natural logarithm.",
    ),
    Cause.TOKEN_SHIFT: CauseGuide(
        HALTED,
        "The difference vanishes when one side is moved by some positions, in whole answers or from a place on.",
        "Align labels: the logprob of token t comes from the logits at t - 1. From mid-answer on: one side tokenised "
        "the answer anew.",
    ),
    Cause.SAMPLING_SUPPORT: CauseGuide(
        HALTED,
        "The engine normalised over kept tokens only (top-k, top-p, min-p, guided decoding): the trainer gives its "
        "samples less probability than a policy's own samples have.",
        "Sample without top-k, top-p, min-p and guided decoding, or apply the same support in the trainer.",
    ),
    Cause.SAMPLE_PAIRING: CauseGuide(
        HALTED,
        "One answer's logprobs match another's better than its own.",
        "Look at how rows are gathered over groups and ranks before they are posted.",
    ),
    Cause.LOSS_MASK: CauseGuide(
        HALTED,
        "Tokens count that the engine did not sample: a tool's output, an appended EOS, a mask that begins late.",
        "Mask the tokens that the engine did not sample.",
    ),
    Cause.NONFINITE_LOGPROBS: CauseGuide(
        HALTED,
        "A logprob that counts is NaN or infinite; the sentence says whose, where and how many.",
        "Look at that side's logits there before anything is learnt from the step.",
    ),
    Cause.IMPOSSIBLE_LOGPROBS: CauseGuide(
        HALTED,
        "A side posted a value that no logprob has: above 0, or one number for every token.",
        "Look at what that side posts: probabilities, negative log likelihoods, placeholders, zeros.",
    ),
    Cause.DECODE_PREFILL: CauseGuide(
        MASKED_THEN_HALTED,
        "The engine's decode disagrees with its own prefill of the step's own tokens, answer by answer.",
        "A fault of the engine or a kernel: report it with the leg's figures; masked until then, halted at PAUSE.",
    ),
    Cause.BATCH_VARIANCE: CauseGuide(
        MASKED_THEN_HALTED,
        "The engine's logprobs depend on who shares the batch.",
        "A fault of the engine or a kernel: report it with the leg's figures; a smaller `max_num_seqs` often tells.",
    ),
    Cause.TRAIN_PACKING: CauseGuide(
        HALTED,
        "What the trainer gives an answer depends on the answers that share its pack: attention or state leaks from "
        "one into the next.",
        "Give the trainer's attention and Mamba kernels the bounds of each sequence, or score one sequence a pack "
        "until they have them; what was learnt from such packs is wrong too.",
    ),
    Cause.KERNEL: CauseGuide(
        MASKED_THEN_HALTED,
        "One module of the two sides differs beyond rounding, and the evidence names it; or the trainer scores the "
        "same answer differently each time.",
        "Compare that module's dtype and options on both sides; report it.",
    ),
    Cause.ROUTER: CauseGuide(
        MASKED,
        "Near ties in an MoE router fall differently.",
        "It is noise, and masked. If the rate grows, replay the rollout's expert choices in the trainer.",
    ),
    Cause.ROUNDING: CauseGuide(
        MASKED,
        "The difference is what the dtype explains.",
        "It is noise, and masked. If the limits are too low for your setting, change the run's limits.",
    ),
    Cause.UNKNOWN: CauseGuide(
        RESYNCED_AT_PAUSE,
        "No check explained the difference, or the search ran out of time.",
        "Our own pair is resynced once, and halted if it persists. Look at the worst samples, then `omni-rl check`.",
    ),
}
WEIGHTS = tuple(cause for cause, guide in CAUSES.items() if guide.actions is RESYNCED)
"""Causes that bringing the weights anew heals."""
NOISE = tuple(cause for cause, guide in CAUSES.items() if guide.actions is MASKED)
"""Causes that are no fault."""
