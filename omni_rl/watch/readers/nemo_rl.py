"""NeMo RL's dump of a training step.

Source: NeMo RL, `nemo_rl/algorithms/grpo.py` ("Log training data") and `Logger.log_batched_dict_as_jsonl`: one
`train_data_step<N>.jsonl` a step in the log directory, an object a sequence. Each value is a slice of the batch, so a
list of one; `token_ids`, `token_loss_mask`, `generation_logprobs` (the engine's) and `prev_logprobs` (the trainer's)
cover prompt and answer, padded on the right to the batch's longest, with entry i about token i.
"""

import json
from pathlib import Path
from typing import Any

from omni_rl.errors import RecordError
from omni_rl.ledger.records import StepRecords

NEEDED = ("token_loss_mask", "generation_logprobs", "prev_logprobs", "input_lengths")
OPTIONAL = ("token_ids", "sample_loss_mask", "rewards")


def read_dump(path: Path, *, kind: str = "text") -> StepRecords:
    """One `train_data_step<N>.jsonl`. Sequences whose `sample_loss_mask` is 0 keep their logprobs, and count in no
    figure.

    Raises:
        RecordError: names the line, and what it lacks.
    """
    return StepRecords.of(
        [_record(f"{path}, line {n}", line, kind) for n, line in enumerate(path.read_text().splitlines(), 1)]
    )


def _record(where: str, line: str, kind: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        raise RecordError(f"{where}: not JSON") from None
    if missing := [name for name in NEEDED if name not in row]:
        raise RecordError(f"{where}: no {', '.join(missing)}; is it a train_data_step<N>.jsonl of NeMo RL?")
    values = {name: _alone(where, name, value) for name, value in row.items() if name in (*NEEDED, *OPTIONAL)}
    length = int(values["input_lengths"])
    mask = [bool(value) for value in values["token_loss_mask"][:length]]
    # The answer begins at the first token that was sampled; in later turns others' tokens lie between.
    start = mask.index(True) if True in mask else length
    counted = bool(values.get("sample_loss_mask", 1))
    record = {
        "sample": str(row.get("idx", where)),
        "kind": kind,
        "prompt_tokens": start,
        "rollout_logprobs": values["generation_logprobs"][start:length],
        "train_logprobs": values["prev_logprobs"][start:length],
        "loss_mask": [value and counted for value in mask[start:]],
        "reward": values.get("rewards"),
    }
    if "token_ids" in values:
        ids = values["token_ids"]
        record |= {"prompt_ids": ids[:start], "ids": ids[start:length]}
    return record


def _alone(where: str, name: str, value: Any) -> Any:
    """The only item of a slice of one."""
    if not isinstance(value, list) or len(value) != 1:
        raise RecordError(f"{where}: {name} is not a list of one item, as NeMo RL writes it")
    return value[0]
