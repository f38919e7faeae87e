"""A step's records from what trainers hold: tensors of any dtype, jagged rows, lists, prompts and names."""

from typing import Any

import numpy as np
import pytest
import torch

from omni_rl.errors import RecordError
from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.schema import RecordLimits
from omni_rl.watch.table import StepValues, step_rows
from omni_rl.watch.values import snapshot

ROLLOUT = [[-1.0, -2.0, -0.5], [-0.25, -3.0]]
TRAIN = [[-1.5, -2.0, -0.5], [-0.25, -2.0]]
PADDED = np.array([[-1.0, -2.0, -0.5, 0.0], [-0.25, -3.0, 0.0, 0.0]])
PADDED_TRAIN = np.array([[-1.5, -2.0, -0.5, 7.0], [-0.25, -2.0, 7.0, 7.0]])
MASK = np.array([[1, 1, 1, 0], [1, 1, 0, 0]])


def records(**values: Any) -> list[dict[str, Any]]:
    given: StepValues = snapshot({"rollout_logprobs": ROLLOUT, "train_logprobs": TRAIN, **values})
    rows = step_rows(given)
    StepRecords.of(rows)  # the published schema takes them
    return rows


def forms() -> dict[str, tuple[Any, Any, Any]]:
    rollout, train = torch.tensor(PADDED), torch.tensor(PADDED_TRAIN)
    jagged = [torch.nested.nested_tensor(rows, layout=torch.jagged) for rows in (_rows(ROLLOUT), _rows(TRAIN))]
    return {
        "numpy": (PADDED, PADDED_TRAIN, MASK),
        "lists": (ROLLOUT, TRAIN, None),
        "padded lists": (PADDED.tolist(), PADDED_TRAIN.tolist(), MASK.tolist()),
        "bfloat16": (rollout.bfloat16(), train.bfloat16().requires_grad_(), torch.tensor(MASK).bool()),
        "with gradients": (rollout, train.requires_grad_() * 1, torch.tensor(MASK)),
        "left padded": (PADDED[:, ::-1], PADDED_TRAIN[:, ::-1], MASK[:, ::-1]),
        "jagged": (jagged[0], jagged[1], None),
        "rows of tensors": (_rows(ROLLOUT), _rows(TRAIN), None),
        "masks as floats": (PADDED.astype(np.float32), PADDED_TRAIN, MASK.astype(np.float32)),
        "lists with None": ([[-1.0, -2.0, None], [-0.25, -3.0]], TRAIN, None),
    }


def _rows(values: list[list[float]]) -> list[torch.Tensor]:
    return [torch.tensor(row) for row in values]


@pytest.mark.parametrize("as_tensors", [False, True])
def test_entropies_and_likeliest_ids_go_along_without_padding(as_tensors: bool) -> None:
    entropy, ids = np.arange(8, dtype=np.float32).reshape(2, 4), np.arange(16).reshape(2, 4, 2)
    logprobs = -ids.astype(np.float32)
    given = [torch.tensor(value) if as_tensors else value for value in (entropy, entropy + 1, ids, logprobs)]
    names = ("rollout_entropy", "train_entropy", "rollout_top_ids", "rollout_top_logprobs")
    values = dict(zip(names, given, strict=True))
    rows = records(rollout_logprobs=PADDED, train_logprobs=PADDED_TRAIN, mask=MASK, **values)
    assert [row["rollout_entropy"].tolist() for row in rows] == [[0, 1, 2], [4, 5]]
    assert [row["train_entropy"].tolist() for row in rows] == [[1, 2, 3], [5, 6]]
    assert [row["rollout_top_ids"].tolist() for row in rows] == [[0, 1, 2, 3, 4, 5], [8, 9, 10, 11]]
    assert [row["rollout_top_logprobs"].tolist() for row in rows] == [[0, -1, -2, -3, -4, -5], [-8, -9, -10, -11]]
    with pytest.raises(RecordError, match="rollout_top_ids has shape"):
        records(rollout_top_ids=np.zeros((2, 3)), rollout_top_logprobs=np.zeros((2, 3)))


@pytest.mark.parametrize("form", forms().keys())
def test_every_form_gives_the_same_answers(form: str) -> None:
    rollout, train, mask = forms()[form]
    found = records(rollout_logprobs=rollout, train_logprobs=train, mask=mask)
    backwards = -1 if form == "left padded" else 1
    for row, engine, trainer in zip(found, ROLLOUT, TRAIN, strict=True):
        wanted = np.array(engine)
        if form == "lists with None" and len(engine) == 3:
            wanted[2] = np.nan
        np.testing.assert_array_equal(row["rollout_logprobs"][::backwards], wanted)
        np.testing.assert_array_equal(row["train_logprobs"][::backwards], trainer)
        assert "loss_mask" not in row
    assert [row["sample"] for row in found] == ["0", "1"]


def test_a_snapshot_is_not_written_over() -> None:
    rollout, train = torch.tensor(PADDED), PADDED_TRAIN.copy()
    held = snapshot({"rollout_logprobs": rollout, "train_logprobs": train, "mask": MASK})
    rollout.zero_()
    train[:] = 0
    assert step_rows(held)[0]["rollout_logprobs"].tolist() == ROLLOUT[0]
    assert step_rows(held)[0]["train_logprobs"].tolist() == TRAIN[0]


def test_a_snapshot_of_lists_is_not_emptied() -> None:
    """A trainer may fill the same lists anew at every step."""
    rollout, rewards = [list(row) for row in ROLLOUT], [1.0, 0.0]
    held = snapshot({"rollout_logprobs": rollout, "train_logprobs": TRAIN, "rewards": rewards})
    for row in rollout:
        row.clear()
    rollout.clear()
    rewards.clear()
    answers = step_rows(held)
    assert [answer["rollout_logprobs"].tolist() for answer in answers] == ROLLOUT
    assert [answer["reward"] for answer in answers] == [1.0, 0.0]


def test_a_tools_tokens_are_in_the_answer_and_do_not_count() -> None:
    tool = np.array([[1, 0, 1, 1], [1, 1, 1, 1]])
    found = records(rollout_logprobs=PADDED, train_logprobs=PADDED_TRAIN, mask=MASK, tool_mask=tool)
    assert found[0]["loss_mask"].tolist() == [True, False, True]
    assert "loss_mask" not in found[1]
    # The same said by a mask with a hole.
    (holed, _) = records(rollout_logprobs=PADDED, train_logprobs=PADDED_TRAIN, mask=MASK * tool)
    assert holed["loss_mask"].tolist() == [True, False, True]


def test_an_answer_that_is_masked_whole_is_empty() -> None:
    found = records(rollout_logprobs=PADDED, train_logprobs=PADDED_TRAIN, mask=MASK * [[0], [1]], rollout_version="w1")
    assert len(found[0]["rollout_logprobs"]) == 0
    assert "version_spans" not in found[0]
    assert found[1]["version_spans"] == [{"version": "w1", "start": 0, "end": 2}]


def test_answers_are_named_by_prompt_and_generation() -> None:
    assert [row["sample"] for row in records(groups=["p7", "p7"])] == ["p7/0", "p7/1"]
    assert [row["sample"] for row in records(groups=torch.tensor([4, 9]))] == ["4/0", "9/0"]
    assert [row["sample"] for row in records(samples=["a", "b"], groups=[0, 0])] == ["a", "b"]


def test_each_sides_prompt_has_a_digest_where_both_are_known() -> None:
    prompts, there = np.array([[0, 7, 8], [5, 6, 7]]), np.array([[0, 1, 1], [1, 1, 1]])
    (alone, _) = records(prompt_ids=prompts, prompt_mask=there)
    assert alone["prompt_ids"].tolist() == [7, 8]
    assert "train_prompt_digest" not in alone
    same, other = records(prompt_ids=prompts, prompt_mask=there, rollout_prompt_ids=[[7, 8], [5, 5, 6, 7]])
    assert same["rollout_prompt_digest"] == same["train_prompt_digest"]
    assert other["rollout_prompt_digest"] != other["train_prompt_digest"]
    assert other["prompt_ids"].tolist() == [5, 6, 7]


def test_what_is_one_for_all_and_what_is_one_an_answer() -> None:
    found = records(temperature=0.7, rewards=torch.tensor([1.0, 0.0]), kinds=["text", "image"], logprobs_of="raw")
    assert [row["temperature"] for row in found] == [0.7, 0.7]
    assert [row["reward"] for row in found] == [1.0, 0.0]
    assert [row["kind"] for row in found] == ["text", "image"]
    assert [row["logprobs_of"] for row in found] == ["raw", "raw"]


def test_versions_may_be_numbers() -> None:
    each: Any
    for each in (3, np.int64(3), torch.tensor(3), "3"):
        rows = records(rollout_version=each, train_version=each)
        assert [row["version_spans"][0]["version"] for row in rows] == ["3", "3"]
        assert [row["train_version"] for row in rows] == ["3", "3"]
    for each in ([3, 4], np.array([3, 4]), torch.tensor([3, 4]), ["3", "4"]):
        rows = records(rollout_version=each, train_version=each)
        assert [row["version_spans"][0]["version"] for row in rows] == ["3", "4"]
        assert [row["train_version"] for row in rows] == ["3", "4"]


def test_a_prompts_text_is_made_to_fit() -> None:
    longest = RecordLimits().text
    rows = records(prompt_text=["a\0b \ud83d \U0001f600", "é" * longest])
    assert [row["prompt_text"] for row in rows] == ["a\ufffdb \ufffd \U0001f600", "é" * (longest // 2)]
    assert records(prompt_text=["x" + "é" * longest, None])[0]["prompt_text"] == "x" + "é" * (longest // 2 - 1)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"train_logprobs": [[-1.0], [-2.0]]}, "train_logprobs has 1 value in row 0, rollout_logprobs 3"),
        ({"train_logprobs": [[-1.0]]}, "train_logprobs has 1 row, rollout_logprobs 2"),
        ({"train_logprobs": np.zeros(5)}, r"train_logprobs has shape \(5,\)"),
        ({"mask": [[1, 1], [1, 1]]}, "mask has 2 values in row 0"),
        ({"groups": [1]}, "1 group for 2 answers"),
        ({"samples": ["one"]}, "samples has 1 value for 2 answers"),
        ({"rewards": [1.0, 2.0, 3.0]}, r"rewards has shape \(3,\)"),
        ({"prompt_ids": [[1]]}, "prompt_ids has 1 row for 2 answers"),
        ({"colour": "red"}, "a step has no colour"),
    ],
)
def test_what_does_not_fit_is_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(RecordError, match=said):
        records(**values)
