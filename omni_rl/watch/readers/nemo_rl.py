"""Reads NeMo RL's dump of a training step, in the formats of its releases since 0.2.

Source: NeMo RL, `nemo_rl/algorithms/grpo.py` ("Log training data") and `Logger.log_batched_dict_as_jsonl`: one
`train_data_step<N>.jsonl` a step in the log directory, an object a sequence, each value a slice of the batch, so a list
of one. `generation_logprobs` (the engine's) and `prev_logprobs` (the trainer's) cover prompt and answer, padded on the
right to the batch's longest, with entry i about token i. 0.2 to 0.5 write those with `content`, `rewards` and
`input_lengths` alone; `token_ids`, `token_loss_mask` and `sample_loss_mask` came with 0.6, `filtered_rewards` (with
dynamic sampling) with 0.4. The engine's logprobs are processed ones since 0.5. Since 0.7, `force_on_policy_ratio`
leaves zeros for `prev_logprobs`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.posted.step import LogprobsOf
from omni_rl.errors import RecordError
from omni_rl.ledger.records import StepRecords
from omni_rl.watch.readers.lines import Located, checked, objects, read_bytes, shortened
from omni_rl.watch.table import StepValues, step_rows
from omni_rl.watch.values import as_array

NEEDED = ("generation_logprobs", "prev_logprobs", "input_lengths")
USED = (*NEEDED, "token_ids", "token_loss_mask", "sample_loss_mask", "rewards", "filtered_rewards")
UNMASKED = (
    "written by NeMo RL before 0.6, without token_loss_mask: tokens whose generation_logprobs are not 0 are taken for "
    "the sampled ones, and answers that the loss left out are judged too"
)
FALSE_ZEROS = (
    "prev_logprobs are zeros, which are no logprobs: with loss_fn.force_on_policy_ratio=true NeMo RL does not compute "
    "them; set it to false, or set grpo.seq_logprob_error_threshold, which needs them"
)
Rows = Sequence[tuple[str, Mapping[str, Any]]]
"""The sequences of a step as NeMo RL holds them, each with the place that errors name."""


@dataclass(frozen=True)
class _Sequence:
    """One sequence of T tokens, without padding. `sampled` [T] says which tokens the policy sampled; `counted`, whether
    the loss takes the sequence."""

    rollout: NDArray[np.float64]
    train: NDArray[np.float64]
    sampled: NDArray[np.bool_]
    ids: NDArray[np.int64] | None
    counted: bool
    reward: float | None

    @property
    def start(self) -> int:
        """The place of the first sampled token, which ends the prompt; others' tokens may lie between later sampled
        ones."""
        return int(self.sampled.argmax()) if self.sampled.any() else len(self.sampled)


def read_dump(path: Path, *, kind: str = "text", logprobs_of: LogprobsOf | None = None) -> StepRecords:
    """Return one `train_data_step<N>.jsonl` as records; see `step_values`.

    Raises:
        RecordError: The file cannot be read, or is none of NeMo RL's with logprobs; the error names file and line.
    """
    return records(path, read_rows(path), kind=kind, logprobs_of=logprobs_of)


def read_rows(path: Path) -> Rows:
    """Return the sequences of one `train_data_step<N>.jsonl`.

    Raises:
        RecordError: The file cannot be read, or is not as NeMo RL writes it; the error names file and line.
    """
    return rows_of(objects(path, read_bytes(path)))


def rows_of(located: Iterable[Located]) -> Rows:
    """Return the sequences of such a file's lines. Raises `RecordError` for what NeMo RL does not write, by line."""
    return [(where, _alone(where, row)) for where, row in located]


def records(path: Path, rows: Rows, *, kind: str = "text", logprobs_of: LogprobsOf | None = None) -> StepRecords:
    """Return the sequences of a file as records; see `step_values`. Raises `RecordError`, by file and line."""
    values = step_values(rows, kind, logprobs_of)
    return checked(path, [(where, row) for (where, _), row in zip(rows, step_rows(values), strict=True)])


def is_masked(rows: Rows) -> bool:
    """Return whether the sequences say which tokens the policy sampled, as they do since 0.6."""
    return all("token_loss_mask" in row for _, row in rows)


def step_values(rows: Rows, kind: str = "text", logprobs_of: LogprobsOf | None = None) -> StepValues:
    """Return a step's values. Sequences whose `sample_loss_mask` is 0 keep their logprobs, and count in no figure.

    `logprobs_of` is as the engine was configured (`vllm_cfg.logprobs_mode`); None: processed since 0.6, unknown before.

    Raises:
        RecordError: A sequence lacks values, or has others than NeMo RL writes; or `prev_logprobs` are no logprobs.
    """
    found = [_sequence(where, row) for where, row in rows]
    if not any(one.train.any() for one in found) and any(one.rollout.any() for one in found):
        raise RecordError(f"{rows[0][0]}: {FALSE_ZEROS}")
    values: StepValues = {
        "rollout_logprobs": [one.rollout for one in found],
        "train_logprobs": [one.train for one in found],
        "mask": [one.sampled for one in found],
        "tool_mask": [one.sampled & one.counted for one in found],
        "kinds": kind,
        "logprobs_of": logprobs_of or ("processed" if is_masked(rows) else "unknown"),
    }
    ids = [one.ids for one in found if one.ids is not None]
    if len(ids) == len(found):
        values["ids"] = ids
        values["prompt_ids"] = [row[: one.start] for row, one in zip(ids, found, strict=True)]
    if all(one.reward is not None for one in found):
        values["rewards"] = [one.reward for one in found]
    if any("filtered_rewards" in row for _, row in rows):  # groups that all earned the same were left out
        values["filtered"] = "reward"
    return values


def _sequence(where: str, row: Mapping[str, Any]) -> _Sequence:
    if missing := [name for name in NEEDED if name not in row]:
        raise RecordError(
            f"{where}: no {', '.join(missing)}; is it a train_data_step<N>.jsonl of NeMo RL's GRPO? Its distillation "
            "writes no logprobs, and nothing is written with env.should_log_nemo_gym_responses"
        )
    length = _length(where, row["input_lengths"])
    rollout, train = (_floats(where, name, row[name], length) for name in ("generation_logprobs", "prev_logprobs"))
    given = row.get("token_loss_mask")
    sampled = rollout != 0 if given is None else _floats(where, "token_loss_mask", given, length) != 0
    ids = None if "token_ids" not in row else _floats(where, "token_ids", row["token_ids"], length)
    if ids is not None and not ((ids >= 0) & (ids < 2**53) & (ids == np.floor(ids))).all():
        raise RecordError(f"{where}: token_ids are not whole numbers")
    reward = row.get("filtered_rewards", row.get("rewards"))
    return _Sequence(
        rollout,
        train,
        sampled,
        None if ids is None else ids.astype(np.int64),
        bool(_float(where, "sample_loss_mask", row.get("sample_loss_mask", 1))),
        None if reward is None else _float(where, "rewards", reward),
    )


def _alone(where: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the only item of each list of one."""
    for name in USED:
        if name in row and not (isinstance(row[name], list) and len(row[name]) == 1):
            raise RecordError(f"{where}: {name} is not a list of one item, as NeMo RL writes it")
    return {name: row[name][0] for name in USED if name in row}


def _length(where: str, value: Any) -> int:
    length = _float(where, "input_lengths", value)
    if length < 0 or not length.is_integer():
        raise RecordError(f"{where}: input_lengths is {value}, not a number of tokens")
    return int(length)


def _float(where: str, name: str, value: Any) -> float:
    array = _array(where, name, value)
    if array.ndim:
        raise RecordError(f"{where}: {name} is {shortened(value)}, not a number")
    return float(array)


def _floats(where: str, name: str, values: Any, length: int) -> NDArray[np.float64]:
    """Return the first `length` values of a padded row; null is NaN."""
    array = _array(where, name, values)
    if array.ndim != 1 or len(array) < length:
        raise RecordError(f"{where}: {name} has shape {list(array.shape)} for input_lengths {length}")
    return array[:length]


def _array(where: str, name: str, values: Any) -> NDArray[np.float64]:
    try:
        array = as_array(values)
        if array.dtype.kind in "biufO":  # O: null is among them
            return array.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        pass  # rows of several lengths, objects, numbers that no float holds
    raise RecordError(f"{where}: {name} is {shortened(values)}, not numbers")
