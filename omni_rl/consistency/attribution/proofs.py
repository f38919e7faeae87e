"""Checks that read weights back: what they find is proven, whatever the logprobs say."""

from collections.abc import Sequence

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.evidence import Audit, Check, Finding, TrainerAudit, named
from omni_rl.counting import agreeing, counted


def weights(audits: Sequence[Audit]) -> Finding:
    """Check whether every replica holds, byte for byte, what it says it serves."""
    broken = [audit for audit in audits if audit.wrong]
    elements = sum(audit.elements for audit in audits)
    if not broken:
        return Finding(
            Check.WEIGHTS,
            "clear",
            f"all {counted(elements, 'element')} of {counted(len(audits), 'replica')} "
            f"{agreeing(elements, 'is that', 'are those')} of the version they serve",
            numbers={"elements": elements},
        )
    audit = broken[0]
    stale = all(tensor.stale for tensor in audit.wrong)
    names = tuple(tensor.tensor for tensor in audit.wrong)
    wrong = sum(tensor.elements for tensor in audit.wrong)
    what = "still holds the version before" if stale else f"holds {counted(wrong, 'element')} that nobody sent"
    return Finding(
        Check.WEIGHTS,
        "explains",
        f"replica {audit.replica} serves {audit.version} and {what} in {named(names)}",
        Cause.STALE_WEIGHTS if stale else Cause.CORRUPT_WEIGHTS,
        {"elements_wrong": wrong, "elements": audit.elements, "tensors_wrong": len(names), "replicas": len(broken)},
        tensors=names,
    )


def trainer_weights(audit: TrainerAudit) -> Finding:
    """Check whether the trainer scores with the weights that its version names."""
    if audit.held == audit.version:
        return Finding(Check.TRAINER_WEIGHTS, "clear", f"the trainer holds the weights of {audit.version}")
    where = f" in {named(audit.tensors)}" if audit.tensors else ""
    return Finding(
        Check.TRAINER_WEIGHTS,
        "explains",
        f"the trainer says that it scores with {audit.version} and holds {audit.held}{where}: its weights were changed "
        "past its own updates; look for what writes to the model between two steps, and sync",
        Cause.CORRUPT_WEIGHTS,
        {"tensors_wrong": len(audit.tensors)} if audit.tensors else {},
        tensors=audit.tensors,
    )
