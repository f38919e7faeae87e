"""What each cause and each kind of incident means, and what a person does about it.

The operating guide's sections and the remedies of incidents are both made of this table (`tools/reference.py`), so that
the page, the pager and the guide never give two answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.incidents import IncidentKind

GUIDE = "docs/operating.md"
"""Where every cause, and every kind of incident without one, has a section of its own."""


@dataclass(frozen=True)
class Guidance:
    """`remedy`: what a person does, where the service does not do it itself."""

    meaning: str
    remedy: str


OF_CAUSE: Mapping[Cause, Guidance] = {
    Cause.STALE_WEIGHTS: Guidance(
        "An engine serves another version than the trainer has: the records say so, or the difference grows with every "
        "update while both sides stay proper policies.",
        "Of our own pair nothing: it is resynced once and rechecked. Of your run: look whether updates, or the "
        "adapter, reach the engine.",
    ),
    Cause.CORRUPT_WEIGHTS: Guidance(
        "A tensor of an engine is not what was sent, or the trainer's own weights are not those that its version "
        "names; the evidence says which and names it.",
        "Of our own pair nothing: it is resynced. If it returns on the same host, take the host out; if it is the "
        "trainer, look for what writes to the model past its updates.",
    ),
    Cause.STALE_CACHE: Guidance(
        "Cached features or prefixes are of older weights.",
        "Of our own pair nothing: a sync resets the caches. If it returns, the engine was updated past the service.",
    ),
    Cause.MEDIA_MISMATCH: Guidance(
        "The two sides saw other pixels, sounds or frames; the digests differ.",
        "Find who preprocesses twice, or with other settings (tiling, sampling rate, frames). Resume when both take "
        "one path.",
    ),
    Cause.PROMPT_MISMATCH: Guidance(
        "The ids of the prompt differ.",
        "Compare chat template, tokenizer and placeholder expansion of both sides; expand once.",
    ),
    Cause.LOGPROB_POSTPROCESSING: Guidance(
        "One side's logprobs are a function of the right ones: another temperature, a penalty, the most likely "
        "token's, another base.",
        'Let both sides report at the sampling temperature (`logprobs_mode="processed_logprobs"` in vLLM), without '
        "penalties; take the sampled id's entry, as a natural logarithm.",
    ),
    Cause.TOKEN_SHIFT: Guidance(
        "The difference vanishes when one side is moved by some positions, in whole answers or from a place on.",
        "Align labels: the logprob of token t comes from the logits at t - 1. From mid-answer on: one side tokenised "
        "the answer anew.",
    ),
    Cause.SAMPLING_SUPPORT: Guidance(
        "The engine normalised over kept tokens only (top-k, top-p, min-p, guided decoding): the trainer gives its "
        "samples less probability than a policy's own samples have.",
        "Sample without top-k, top-p, min-p and guided decoding, or apply the same support in the trainer.",
    ),
    Cause.SAMPLE_PAIRING: Guidance(
        "One answer's logprobs match another's better than its own.",
        "Look at how rows are gathered over groups and ranks before they are posted.",
    ),
    Cause.LOSS_MASK: Guidance(
        "Tokens count that the engine did not sample: a tool's output, an appended EOS, a mask that begins late.",
        "Mask the tokens that the engine did not sample.",
    ),
    Cause.NONFINITE_LOGPROBS: Guidance(
        "A logprob that counts is NaN or infinite; the sentence says whose, where and how many.",
        "Look at that side's logits there before anything is learnt from the step.",
    ),
    Cause.IMPOSSIBLE_LOGPROBS: Guidance(
        "A side posted a value that no logprob has: above 0, or one number for every token.",
        "Look at what that side posts: probabilities, negative log likelihoods, placeholders, zeros.",
    ),
    Cause.DECODE_PREFILL: Guidance(
        "The engine's decode disagrees with its own prefill of the step's own tokens, answer by answer.",
        "A fault of the engine or a kernel: report it with the leg's figures; masked until then, halted at PAUSE.",
    ),
    Cause.BATCH_VARIANCE: Guidance(
        "The engine's logprobs depend on who shares the batch.",
        "A fault of the engine or a kernel: report it with the leg's figures; a smaller `max_num_seqs` often tells.",
    ),
    Cause.TRAIN_PACKING: Guidance(
        "What the trainer gives an answer depends on the answers that share its pack: attention or state leaks from "
        "one into the next.",
        "Give the trainer's attention and Mamba kernels the bounds of each sequence, or score one sequence a pack "
        "until they have them; what was learnt from such packs is wrong too.",
    ),
    Cause.KERNEL: Guidance(
        "One module of the two sides differs beyond rounding, and the evidence names it; or the trainer scores the "
        "same answer differently each time.",
        "Compare that module's dtype and options on both sides; report it.",
    ),
    Cause.ROUTER: Guidance(
        "Near ties in an MoE router fall differently.",
        "It is noise, and masked. If the rate grows, replay the rollout's expert choices in the trainer.",
    ),
    Cause.ROUNDING: Guidance(
        "The difference is what the dtype explains.",
        "It is noise, and masked. If the limits are too low for your setting, change the run's limits.",
    ),
    Cause.UNKNOWN: Guidance(
        "No check explained the difference, or the search ran out of time.",
        "Our own pair is resynced once, and halted if it persists. Look at the worst samples, then `omni-rl check`.",
    ),
}

OF_KIND: Mapping[IncidentKind, Guidance] = {
    "drift": Guidance(
        "The two policies part, and the cause is not known yet.",
        "Look at the run's worst samples and its figures by kind of prompt.",
    ),
    "update": Guidance(
        "An engine did not take an update of weights, or keeps what older ones computed.",
        "Look whether the update, or the adapter, reaches the engine.",
    ),
    "sync": Guidance(
        "A sync of weights failed, or is not proven. The engines serve the weights from before, which is safe and "
        "makes the data older.",
        "Ask for the sync again (`omni-rl sync`).",
    ),
    "engine": Guidance(
        "An engine, the trainer or the cluster does not answer.",
        "A dead engine is replaced by the next sync, `omni-rl sync --source served` at once; a dead trainer or cluster "
        "by `omni-rl up`.",
    ),
    "silence": Guidance(
        "The run's steps stopped coming: it ended without saying so, it hangs, or its hook posts no more.",
        "Look whether the run still runs. If it is over, say so (`POST /v1/runs/{run}/end`); if it hangs, or its hook "
        "posts no more, start it again.",
    ),
}
"""Of incidents that have no cause, or none yet."""


def remedy(kind: IncidentKind, cause: str | None) -> str:
    """What to do about an incident."""
    return (OF_KIND[kind] if cause is None else OF_CAUSE[Cause(cause)]).remedy


def section(kind: IncidentKind, cause: str | None) -> str:
    """The section of the guide that an incident is explained in, as links name it."""
    return kind if cause is None else cause
