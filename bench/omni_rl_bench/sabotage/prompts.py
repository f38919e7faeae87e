"""Defines faults of the prompt that the trainer runs, while the engine has it right. A fault takes a rank and a
seed."""

from dataclasses import replace
from typing import Any

from omni_rl.consistency.actions import Cause
from omni_rl.models.packed import PackedSequences
from omni_rl_bench.sabotage.fault import Fault
from omni_rl_bench.sabotage.media import batches


def placeholder_off(worker: Any, seed: int) -> None:
    """Put media features one place too early."""
    batches(
        lambda batch: replace(batch, media=tuple(replace(item, positions=item.positions - 1) for item in batch.media))
    )


def other_template(worker: Any, seed: int) -> None:
    """Begin every prompt with another role."""

    def changed(batch: PackedSequences) -> PackedSequences:
        ids = batch.ids.clone()
        ids[batch.cu_seqlens[:-1].long() + 1] += 1
        return replace(batch, ids=ids)

    batches(changed)


FAULTS = (
    Fault("placeholder off by one", (Cause.PROMPT_MISMATCH,), placeholder_off, side="trainer", proven=True),
    Fault("another chat template", (Cause.PROMPT_MISMATCH,), other_template, side="trainer", proven=True),
)
