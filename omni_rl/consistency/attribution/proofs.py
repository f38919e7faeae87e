"""Checks that compare names and digests: what they find is proven, whatever the logprobs say."""

from collections.abc import Sequence

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.attribution.evidence import Audit, Check, Finding, SampleEvidence, named


def versions(samples: Sequence[SampleEvidence]) -> Finding:
    """Whether the weights that sampled are those that scored."""
    apart = [s for s in samples if s.scored_with and set(s.sampled_under) - {s.scored_with}]
    if not apart:
        return Finding(Check.VERSIONS, "clear", "the same weight version sampled and scored")
    first = apart[0]
    stale = sorted(set(first.sampled_under) - {first.scored_with})
    return Finding(
        Check.VERSIONS,
        "explains",
        f"sampled under {', '.join(stale)}, scored with {first.scored_with}: the engine has other weights than the "
        "trainer; sync them",
        Cause.STALE_WEIGHTS,
        {"samples_apart": len(apart), "samples_looked_at": len(samples)},
        samples=_names(apart),
    )


def media(samples: Sequence[SampleEvidence]) -> Finding:
    """Whether both models received the tensors that were rendered."""
    apart = [(s, tensor) for s in samples for tensor in s.tensors if not tensor.agreed]
    if not apart:
        seen = sum(len(s.tensors) for s in samples)
        return Finding(
            Check.MEDIA, "clear", f"all {seen} media tensors have one digest on both sides", numbers={"tensors": seen}
        )
    sample, tensor = apart[0]
    sides = [("the engine", tensor.engine), ("the trainer", tensor.train)]
    other = [side for side, digest in sides if digest != tensor.rendered]
    lacks = " and ".join(side for side, digest in sides if digest is None)
    return Finding(
        Check.MEDIA,
        "explains",
        f"{tensor.modality} {tensor.item} of sample {sample.record.sample}: "
        + (f"{lacks} did not get" if lacks else f"{' and '.join(other)} got another tensor than")
        + f" the {tensor.name} that was rendered",
        Cause.MEDIA_MISMATCH,
        {"tensors_apart": len(apart)},
        tensors=tuple(dict.fromkeys(t.name for _, t in apart)),
        samples=_names([s for s, _ in apart]),
        modalities=tuple(dict.fromkeys(t.modality for _, t in apart)),
    )


def prompt(samples: Sequence[SampleEvidence]) -> Finding:
    """Whether both sides ran the same ids, with media features at the same places."""
    known = [s for s in samples if s.engine_prompt is not None and s.train_prompt is not None]
    apart = [s for s in known if s.engine_prompt != s.train_prompt]
    if not known:
        return Finding(Check.PROMPT, "not_done", "the records have no digests of the prompts that were run")
    if not apart:
        return Finding(Check.PROMPT, "clear", f"both sides ran the same ids of {len(known)} prompts")
    return Finding(
        Check.PROMPT,
        "explains",
        f"sample {apart[0].record.sample}: the trainer ran other prompt ids, or put media features elsewhere, than the "
        "engine; render once and hand the result to both",
        Cause.PROMPT_MISMATCH,
        {"samples_apart": len(apart), "samples_looked_at": len(known)},
        samples=_names(apart),
        modalities=tuple(dict.fromkeys(s.record.kind for s in apart)),
    )


def weights(audits: Sequence[Audit]) -> Finding:
    """Whether every replica holds, byte for byte, what it says it serves."""
    broken = [audit for audit in audits if audit.wrong]
    elements = sum(audit.elements for audit in audits)
    if not broken:
        return Finding(
            Check.WEIGHTS,
            "clear",
            f"all {elements} elements of {len(audits)} replicas are those of the version they serve",
            numbers={"elements": elements},
        )
    audit = broken[0]
    stale = all(tensor.stale for tensor in audit.wrong)
    names = tuple(tensor.tensor for tensor in audit.wrong)
    wrong = sum(tensor.elements for tensor in audit.wrong)
    what = "still holds the version before" if stale else f"holds {wrong} elements that nobody sent"
    return Finding(
        Check.WEIGHTS,
        "explains",
        f"replica {audit.replica} serves {audit.version} and {what} in {named(names)}",
        Cause.STALE_WEIGHTS if stale else Cause.CORRUPT_WEIGHTS,
        {"elements_wrong": wrong, "elements": audit.elements, "tensors_wrong": len(names), "replicas": len(broken)},
        tensors=names,
    )


def _names(samples: Sequence[SampleEvidence]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(sample.record.sample for sample in samples))
