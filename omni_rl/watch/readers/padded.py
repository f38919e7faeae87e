"""Batches of padded arrays, as trainers hold them, as records. Shapes: B answers, P prompt and T answer columns."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from omni_rl.errors import RecordError
from omni_rl.ledger.records import StepRecords


def from_padded(
    *,
    rollout_logprobs: ArrayLike,
    train_logprobs: ArrayLike,
    answer_mask: ArrayLike,
    loss_mask: ArrayLike | None = None,
    ids: ArrayLike | None = None,
    prompt_ids: ArrayLike | None = None,
    prompt_mask: ArrayLike | None = None,
    samples: Sequence[str] | None = None,
    kinds: str | Sequence[str] = "text",
    rewards: ArrayLike | None = None,
) -> StepRecords:
    """Records of padded arrays [B, T] (prompts [B, P]); what is padding is left out.

    `answer_mask` marks columns that hold a token of the answer, `loss_mask` those that the policy sampled for its loss
    (a tool's answer is in the first, not in the second). Padding may be on either side. `samples` defaults to the row
    numbers, `kinds` is one for all or one each.

    Raises:
        RecordError: shapes that do not fit, with the name of the array.
    """
    answered = np.asarray(answer_mask).astype(bool)
    rows = {
        "rollout_logprobs": _shaped("rollout_logprobs", rollout_logprobs, answered.shape),
        "train_logprobs": _shaped("train_logprobs", train_logprobs, answered.shape),
    }
    if loss_mask is not None:
        rows["loss_mask"] = _shaped("loss_mask", loss_mask, answered.shape).astype(bool)
    if ids is not None:
        rows["ids"] = _shaped("ids", ids, answered.shape)
    prompts = _prompts(prompt_ids, prompt_mask, len(answered))
    count = len(answered)
    names = samples if samples is not None else [str(row) for row in range(count)]
    of_kind = [kinds] * count if isinstance(kinds, str) else kinds
    earned = None if rewards is None else _shaped("rewards", rewards, (count,))
    if len(names) != count or len(of_kind) != count:
        raise RecordError(f"{len(names)} samples and {len(of_kind)} kinds for {count} rows")
    records = []
    for row in range(count):
        record: dict[str, Any] = {"sample": names[row], "kind": of_kind[row]}
        record |= {name: values[row][answered[row]] for name, values in rows.items()}
        if prompts is not None:
            record["prompt_ids"] = prompts[row]
        if earned is not None:
            record["reward"] = float(earned[row])
        records.append(record)
    return StepRecords.of(records)


def needed(batch: Mapping[str, ArrayLike], name: str, hint: str) -> ArrayLike:
    """An array of a trainer's batch, or a `RecordError` that says how to get it."""
    if name not in batch:
        raise RecordError(f"the batch has no {name!r} (it has {', '.join(sorted(batch))}); {hint}")
    return batch[name]


def _prompts(ids: ArrayLike | None, mask: ArrayLike | None, count: int) -> list[Any] | None:
    if ids is None:
        return None
    values = np.asarray(ids)
    if values.ndim != 2 or len(values) != count:
        raise RecordError(f"prompt_ids has shape {values.shape}; expected {count} rows")
    given = np.ones_like(values, bool) if mask is None else _shaped("prompt_mask", mask, values.shape).astype(bool)
    return [row[there] for row, there in zip(values, given, strict=True)]


def _shaped(name: str, values: ArrayLike, shape: tuple[int, ...]) -> Any:
    array = np.asarray(values)
    if array.shape != shape:
        raise RecordError(f"{name} has shape {array.shape}; expected {shape}")
    return array
