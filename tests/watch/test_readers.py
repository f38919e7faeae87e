"""Steps as other trainers keep and write them. The small dumps here are written as those projects' sources do."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omni_rl.consistency.comparison import compare_step
from omni_rl.errors import RecordError
from omni_rl.watch.readers import nemo_rl, trl, verl
from omni_rl.watch.readers.padded import from_padded

# Two answers of 3 and 2 tokens; in the second answer's place, one token is a tool's.
ROLLOUT = [[-1.0, -2.0, -0.5], [-0.25, -3.0]]
TRAIN = [[-1.5, -2.0, -0.5], [-0.25, -2.0]]


def padded(rows: list[list[float]], width: int = 4, fill: float = 0.0) -> np.ndarray:
    return np.array([[*row, *[fill] * (width - len(row))] for row in rows])


MASK = padded([[1, 1, 1], [1, 1]])
TOOL = padded([[1, 0, 1], [1, 1]])
PROMPTS = np.array([[0, 7, 8], [5, 6, 7]])
PROMPT_MASK = np.array([[0, 1, 1], [1, 1, 1]])


def test_padding_is_left_out_and_tools_do_not_count() -> None:
    records = from_padded(
        rollout_logprobs=padded(ROLLOUT),
        train_logprobs=padded(TRAIN),
        answer_mask=MASK,
        loss_mask=TOOL,
        ids=padded([[11, 12, 13], [14, 15]]).astype(int),
        prompt_ids=PROMPTS,
        prompt_mask=PROMPT_MASK,
        kinds=["image", "text"],
        rewards=[1.0, 0.0],
    )
    assert records.tokens == 5
    step = compare_step(records.columns)
    assert step.overall.metrics.tokens == 4
    assert {kind: c.metrics.logprob_abs_diff_max for kind, c in step.by_kind.items()} == {"image": 0.5, "text": 1.0}
    rows = records.to_json()["records"]
    assert rows[0]["prompt_ids"] == [7, 8]
    assert rows[0]["ids"] == [11, 12, 13]
    assert rows[1]["reward"] == 0.0


def test_arrays_that_do_not_fit_are_named() -> None:
    with pytest.raises(RecordError, match=r"train_logprobs has shape \(2, 3\); expected \(2, 4\)"):
        from_padded(rollout_logprobs=padded(ROLLOUT), train_logprobs=np.zeros((2, 3)), answer_mask=MASK)
    with pytest.raises(RecordError, match="prompt_ids"):
        from_padded(
            rollout_logprobs=padded(ROLLOUT), train_logprobs=padded(TRAIN), answer_mask=MASK, prompt_ids=[[1], [2], [3]]
        )
    with pytest.raises(RecordError, match="1 samples"):
        from_padded(rollout_logprobs=padded(ROLLOUT), train_logprobs=padded(TRAIN), answer_mask=MASK, samples=["alone"])


def test_verl_batch() -> None:
    records = verl.from_batch(
        {
            "responses": padded([[11, 12, 13], [14, 15]]).astype(int),
            "prompts": PROMPTS,
            "attention_mask": np.hstack([PROMPT_MASK, MASK]),
            "response_mask": TOOL,
            "rollout_log_probs": padded(ROLLOUT),
            "old_log_probs": padded(TRAIN),
        }
    )
    assert records.columns.loss_mask is not None
    np.testing.assert_array_equal(records.columns.loss_mask, [True, False, True, True, True])
    np.testing.assert_array_equal(records.columns.rollout_logprobs, [-1.0, -2.0, -0.5, -0.25, -3.0])
    np.testing.assert_array_equal(records.columns.prompt_tokens, [2, 3])


def test_verl_batch_without_rollout_logprobs_says_what_to_set() -> None:
    with pytest.raises(RecordError, match="calculate_log_probs=True"):
        verl.from_batch({"response_mask": MASK, "old_log_probs": padded(TRAIN)})


def test_verl_dump(tmp_path: Path) -> None:
    path = tmp_path / "12.jsonl"
    rows = [
        {"input": "q", "output": "a", "gts": None, "score": 1.0, "step": 12, "rollout_log_probs": r, "old_log_probs": t}
        for r, t in zip(ROLLOUT, TRAIN, strict=True)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    records = verl.read_dump(path)
    assert compare_step(records.columns).overall.metrics.logprob_abs_diff_max == 1.0
    path.write_text(json.dumps({"input": "q", "output": "a", "score": 1.0, "step": 12}) + "\n")
    with pytest.raises(RecordError, match=r"line 1: no rollout_log_probs, old_log_probs.*from_batch"):
        verl.read_dump(path)


def nemo_line(index: int, prompt: int, rollout: list[float], train: list[float], counted: float = 1.0) -> str:
    length, width = prompt + len(rollout), 8
    filled = {
        "token_ids": [*range(length)],
        "token_loss_mask": [0] * prompt + [1] * len(rollout),
        "generation_logprobs": [0.0] * prompt + rollout,
        "prev_logprobs": [0.0] * prompt + train,
    }
    row = {name: [[*values, *[0] * (width - length)]] for name, values in filled.items()}
    extra = {"rewards": [0.5], "input_lengths": [length], "sample_loss_mask": [counted], "content": ["hi"]}
    return json.dumps({**row, **extra, "idx": index})


def test_nemo_rl_dump(tmp_path: Path) -> None:
    path = tmp_path / "train_data_step3.jsonl"
    lines = [nemo_line(0, 3, ROLLOUT[0], TRAIN[0]), nemo_line(1, 2, ROLLOUT[1], TRAIN[1], counted=0.0)]
    path.write_text("\n".join(lines) + "\n")
    records = nemo_rl.read_dump(path, kind="image")
    step = compare_step(records.columns)
    assert step.overall.metrics.tokens == 3
    assert step.overall.metrics.logprob_abs_diff_max == 0.5
    np.testing.assert_array_equal(records.columns.prompt_tokens, [3, 2])
    assert records.to_json()["records"][0]["ids"] == [3, 4, 5]


def test_nemo_rl_dump_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "val_data_step3.jsonl"
    path.write_text(json.dumps({"content": ["hi"], "rewards": [1.0]}) + "\n")
    with pytest.raises(RecordError, match=r"line 1: no token_loss_mask.*train_data_step"):
        nemo_rl.read_dump(path)
    path.write_text("nothing\n")
    with pytest.raises(RecordError, match="line 1: not JSON"):
        nemo_rl.read_dump(path)


def test_trl_batch() -> None:
    batch = {
        "completion_ids": padded([[11, 12, 13], [14, 15]]).astype(int),
        "completion_mask": MASK,
        "tool_mask": TOOL,
        "prompt_ids": PROMPTS,
        "prompt_mask": PROMPT_MASK,
        "sampling_per_token_logps": padded(ROLLOUT),
        "old_per_token_logps": padded(TRAIN),
    }
    assert compare_step(trl.from_batch(batch).columns).overall.metrics.tokens == 4
    del batch["sampling_per_token_logps"]
    with pytest.raises(RecordError, match="use_vllm=True"):
        trl.from_batch(batch)


def test_trl_completions(tmp_path: Path) -> None:
    path = tmp_path / "completions_00012.parquet"
    table = {
        "step": [12, 12],
        "prompt": ["a", "b"],
        "completion": ["c", "d"],
        "exact_match": [1.0, 0.0],
        "advantage": [1.0, -1.0],
        "sampling_per_token_logps": ROLLOUT,
        "old_per_token_logps": TRAIN,
    }
    pq.write_table(pa.table(table), path)
    records = trl.read_dump(path, reward="exact_match")
    assert compare_step(records.columns).overall.metrics.logprob_abs_diff_max == 1.0
    assert [row["reward"] for row in records.to_json()["records"]] == [1.0, 0.0]
    pq.write_table(pa.table({name: table[name] for name in ("step", "prompt", "completion")}), path)
    with pytest.raises(RecordError, match="log_extra"):
        trl.read_dump(path)
    path.write_bytes(b"not parquet")
    with pytest.raises(RecordError, match="cannot be read as Parquet"):
        trl.read_dump(path)
