"""TRL's batches and completion logs.

Source: TRL, `GRPOTrainer._generate_and_score_completions` (the tensors of a batch) and its completions card
(trl/templates/completions_dataset_card.md): `log_completions` writes `completions/completions_<step>.parquet` with
`step`, `prompt`, `completion`, a column for each reward function, `advantage`, and the columns that reward functions
add with `log_extra` (docs/source/grpo_trainer.md).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike

from omni_rl.errors import RecordError
from omni_rl.ledger.records import StepRecords
from omni_rl.watch.readers.padded import from_padded, needed

WITH_VLLM = "use_vllm=True and vllm_importance_sampling_correction=True make it"
LOGPROBS = ("sampling_per_token_logps", "old_per_token_logps")


def from_batch(batch: Mapping[str, ArrayLike], *, kinds: str = "text") -> StepRecords:
    """What `_generate_and_score_completions` returns, as arrays: `completion_ids`, `completion_mask`,
    `sampling_per_token_logps` (vLLM's) and `old_per_token_logps` (the trainer's), [B, T] each; `tool_mask` if there
    are tools, `prompt_ids` and `prompt_mask` for the prompts."""
    mask = needed(batch, "completion_mask", "it is what GRPOTrainer returns")
    return from_padded(
        rollout_logprobs=needed(batch, "sampling_per_token_logps", WITH_VLLM),
        train_logprobs=needed(batch, "old_per_token_logps", WITH_VLLM),
        answer_mask=mask,
        loss_mask=np.asarray(mask) * np.asarray(batch["tool_mask"]) if "tool_mask" in batch else None,
        ids=batch.get("completion_ids"),
        prompt_ids=batch.get("prompt_ids"),
        prompt_mask=batch.get("prompt_mask"),
        kinds=kinds,
    )


def read_dump(path: Path, *, kind: str = "text", reward: str | None = None) -> StepRecords:
    """One `completions_<step>.parquet`.

    TRL's own columns hold no logprobs; they must have been added with `log_extra` as `sampling_per_token_logps` and
    `old_per_token_logps`, one list of numbers a completion, without padding. `reward` names the reward's column.

    Raises:
        RecordError: not a Parquet file, or a column is missing.
    """
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise RecordError(f"{path} cannot be read as Parquet: {error}") from None
    wanted = [*LOGPROBS, *([reward] if reward is not None else [])]
    if missing := [name for name in wanted if name not in table.column_names]:
        raise RecordError(
            f"{path}: no column {', '.join(missing)} (it has {', '.join(table.column_names)}). TRL's own columns hold "
            "no logprobs; add them with log_extra, or post the batch itself: omni_rl.watch.readers.trl.from_batch"
        )
    return StepRecords.of(
        [
            {
                "sample": str(number),
                "kind": kind,
                "rollout_logprobs": row["sampling_per_token_logps"],
                "train_logprobs": row["old_per_token_logps"],
                "reward": row[reward] if reward is not None else None,
                "prompt_text": row.get("prompt") if isinstance(row.get("prompt"), str) else None,
            }
            for number, row in enumerate(table.to_pylist())
        ]
    )
