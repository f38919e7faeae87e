"""verl's batches and rollout dumps.

Source: verl's documentation, "Rollout Correction" (docs/algo/rollout_corr.md: `calculate_log_probs`, the tensors
`rollout_log_probs`, `old_log_probs`, `response_mask`) and "Sandbox Fusion" (docs/sglang_multiturn/sandbox_fusion.rst:
`trainer.rollout_data_dir` writes one `<step>.jsonl`, an object an answer with `input`, `output`, `score`, `step` and
every list that the reward function returned).
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from omni_rl.errors import RecordError
from omni_rl.ledger.records import StepRecords
from omni_rl.watch.readers.padded import from_padded, needed

CALCULATE = "set actor_rollout_ref.rollout.calculate_log_probs=True"
LOGPROBS = ("rollout_log_probs", "old_log_probs")


def from_batch(batch: Mapping[str, ArrayLike], *, kinds: str = "text") -> StepRecords:
    """A step's `DataProto.batch`, as arrays: `responses`, `response_mask`, `attention_mask`, `prompts`,
    `rollout_log_probs` (the engine's) and `old_log_probs` (the trainer's), [B, T] each, prompts padded on the left."""
    mask = np.asarray(needed(batch, "response_mask", "post it after verl has computed it"))
    answered, prompt_mask = mask, None
    if "attention_mask" in batch:
        attention = np.asarray(batch["attention_mask"])
        answered, prompt_mask = attention[:, -mask.shape[1] :], attention[:, : -mask.shape[1]]
    return from_padded(
        rollout_logprobs=needed(batch, "rollout_log_probs", CALCULATE),
        train_logprobs=needed(batch, "old_log_probs", "it must not be in bypass mode"),
        answer_mask=answered,
        loss_mask=mask,
        ids=batch.get("responses"),
        prompt_ids=batch.get("prompts") if prompt_mask is not None else None,
        prompt_mask=prompt_mask,
        kinds=kinds,
    )


def read_dump(path: Path, *, kind: str = "text") -> StepRecords:
    """One `<step>.jsonl` of `trainer.rollout_data_dir`.

    verl's own dump has texts and scores only. The logprobs must be among the lists that the reward function returns
    (verl dumps those too), as `rollout_log_probs` and `old_log_probs`: one list of numbers an answer, without padding.

    Raises:
        RecordError: names the line, and what it lacks.
    """
    records = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:
            raise RecordError(f"{path}, line {number}: not JSON") from None
        if missing := [name for name in LOGPROBS if name not in row]:
            raise RecordError(
                f"{path}, line {number}: no {', '.join(missing)}. verl writes texts and scores only; return both lists "
                f"from the reward function ({CALCULATE}), or post the batch itself: "
                "omni_rl.watch.readers.verl.from_batch"
            )
        records.append(
            {
                "sample": str(row.get("request_id", number - 1)),
                "kind": kind,
                "rollout_logprobs": row["rollout_log_probs"],
                "train_logprobs": row["old_log_probs"],
                "loss_mask": row.get("response_mask"),
                "reward": row.get("score"),
                "prompt_text": row.get("input"),
            }
        )
    return StepRecords.of(records)
