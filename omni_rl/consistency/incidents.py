"""What is said of an incident: what it is about, in a sentence, and what a person can do."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.limits import Judgement
from omni_rl.consistency.shown import shown

IncidentKind = Literal["drift", "update", "sync", "engine", "silence"]
"""drift: the two policies part. update: an engine did not take an update of weights, or keeps what older ones computed.
sync: a sync of weights failed, or is not proven. engine: an engine, the trainer or the cluster does not answer.
silence: a run's steps stopped coming."""
KINDS: tuple[IncidentKind, ...] = get_args(IncidentKind)
GUIDE = "docs/operating.md"
"""Where every cause, and every kind of incident without one, has a section of its own."""


@dataclass(frozen=True)
class Figure:
    """A figure and the limit that it is over; `kind` of prompt, or overall."""

    kind: str
    metric: str
    value: float
    limit: float


@dataclass(frozen=True)
class GoodStep:
    """The last step of a run that was ok, and the weights that sampled it."""

    attempt: int
    step: int
    weights: str


def figure_of(judgement: Judgement) -> Figure | None:
    """The figure of a step that is furthest over its limit; None where none is over one."""
    worst = judgement.worst
    return None if worst is None else Figure(worst.bucket, worst.metric, worst.value, worst.limit)


def headline(step: int, judgement: Judgement, kinds: Collection[str], good: GoodStep | None) -> str:
    """What a step shows. `kinds`: the kinds of prompt that it has."""
    worst = judgement.worst
    clean = "" if good is None else f"; clean to step {good.step}"
    if worst is None or worst.severity < judgement.severity:
        return f"Step {step}: {judgement.reason}{clean}."
    where = _where({breach.bucket for breach in judgement.breaches}, kinds)
    return f"Step {step}, {where}: {worst.metric} {shown(worst.value, '.3g')}, limit {worst.limit:g}{clean}."


def _where(over: Collection[str], kinds: Collection[str]) -> str:
    of = sorted(set(over) & set(kinds))
    if not of:
        return "all kinds together"
    if len(of) < len(kinds):
        return f"{', '.join(of)} only"
    return of[0] if len(of) == 1 else "every kind"


REMEDIES: Mapping[Cause, str] = {
    Cause.STALE_WEIGHTS: "Of our own pair nothing: it is resynced once and rechecked. Of your run: look whether "
    "updates, or the adapter, reach the engine.",
    Cause.CORRUPT_WEIGHTS: "Nothing: resynced. If it returns on the same host, take the host out; if it is the "
    "trainer, look for what writes to the model past its updates.",
    Cause.STALE_CACHE: "Nothing: a sync resets the caches. If it returns, the engine was updated past the service.",
    Cause.MEDIA_MISMATCH: "Find who preprocesses twice, or with other settings (tiling, sampling rate, frames). "
    "Resume when both take one path.",
    Cause.PROMPT_MISMATCH: "Compare chat template, tokenizer and placeholder expansion of both sides; expand once.",
    Cause.LOGPROB_POSTPROCESSING: 'Let both sides report at the sampling temperature (`logprobs_mode="processed_'
    "logprobs\"` in vLLM), without penalties; take the sampled id's entry, as a natural logarithm.",
    Cause.TOKEN_SHIFT: "Align labels: the logprob of token t comes from the logits at t - 1. From mid-answer on: one "
    "side tokenised the answer anew.",
    Cause.SAMPLING_SUPPORT: "Sample without top-k, top-p, min-p and guided decoding, or apply the same support in the "
    "trainer.",
    Cause.SAMPLE_PAIRING: "Look at how rows are gathered over groups and ranks before they are posted.",
    Cause.LOSS_MASK: "Mask the tokens that the engine did not sample.",
    Cause.NONFINITE_LOGPROBS: "Look at that side's logits there before anything is learnt from the step.",
    Cause.IMPOSSIBLE_LOGPROBS: "Look at what that side posts: probabilities, negative log likelihoods, placeholders, "
    "zeros.",
    Cause.DECODE_PREFILL: "A fault of the engine or a kernel: report it with the leg's figures; masked until then, "
    "halted at PAUSE.",
    Cause.BATCH_VARIANCE: "A fault of the engine or a kernel: report it with the leg's figures; a smaller "
    "`max_num_seqs` often tells.",
    Cause.TRAIN_PACKING: "Give the trainer's attention and Mamba kernels the bounds of each sequence, or score one "
    "sequence a pack until they have them; what was learnt from such packs is wrong too.",
    Cause.KERNEL: "Compare that module's dtype and options on both sides; report it.",
    Cause.ROUTER: "Noise: masked. If the rate grows, replay the rollout's expert choices in the trainer.",
    Cause.ROUNDING: "Noise: masked. Limits too low for your setting: change the run's limits.",
    Cause.UNKNOWN: "Resynced once; halted if it persists. Look at the worst samples, then `omni-rl check`.",
}
"""What a person does about a cause, where the service does not do it itself."""


OF_KIND: Mapping[IncidentKind, str] = {
    "drift": "Look at the run's worst samples and its figures by kind of prompt.",
    "update": "Look whether the update, or the adapter, reaches the engine.",
    "sync": "Ask for the sync again (`omni-rl sync`). The engines serve the weights from before, which is safe and "
    "makes the data older.",
    "engine": "A dead engine is replaced by the next sync, `omni-rl sync --source served` at once; a dead trainer or "
    "cluster by `omni-rl up`.",
    "silence": "Look whether the run still runs. If it is over, say so (`POST /v1/runs/{run}/end`); if it hangs, or "
    "its hook posts no more, start it again.",
}
"""What a person does where there is no cause."""


def remedy(kind: IncidentKind, cause: str | None) -> str:
    """What to do about an incident."""
    return OF_KIND[kind] if cause is None else REMEDIES[Cause(cause)]


def section(kind: IncidentKind, cause: str | None) -> str:
    """The section of the guide that an incident is explained in, as links name it."""
    return kind if cause is None else cause
