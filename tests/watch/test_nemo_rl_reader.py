"""NeMo RL's dumps of every release since 0.2, whole and damaged."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_rl.consistency.comparison import compare_step
from omni_rl.errors import RecordError
from omni_rl.watch.readers import nemo_rl
from tests.watch.nemo_rl import RELEASES, Answer, clean_answers, dump, line

ONE = Answer(3, [-1.0, -2.0, -0.5], [-1.5, -2.0, -0.5])
TWO = Answer(2, [-0.25, -3.0], [-0.25, -2.0], reward=0.0)


@pytest.mark.parametrize("release", RELEASES)
def test_each_release_is_read(tmp_path: Path, release: str) -> None:
    records = nemo_rl.read_dump(dump(tmp_path, 3, [ONE, TWO], release), kind="image")
    metrics = compare_step(records.columns).overall.metrics
    assert (metrics.tokens, metrics.logprob_abs_diff_max) == (5, 1.0)
    first, second = records.to_json()["records"]
    assert (first["reward"], second["reward"]) == (1.0, 0.0)
    assert first["kind"] == "image"
    assert first["logprobs_of"] == ("processed" if release >= "0.6" else "unknown")
    if release >= "0.6":
        assert (first["prompt_ids"], first["ids"]) == ([1, 2, 3], [4, 5, 6])


@pytest.mark.parametrize("release", RELEASES)
def test_a_tools_tokens_do_not_count(tmp_path: Path, release: str) -> None:
    answer = Answer(2, [-1.0, -9.0, -8.0, -0.5], [-1.0, -1.0, -1.0, -0.5], tool=(1, 2))
    records = nemo_rl.read_dump(dump(tmp_path, 1, [answer], release))
    assert records.columns.loss_mask is not None
    assert records.columns.loss_mask.tolist() == [True, False, False, True]
    assert compare_step(records.columns).overall.metrics.logprob_abs_diff_max == 0.0


def test_answers_that_the_loss_leaves_out_are_kept_and_do_not_count(tmp_path: Path) -> None:
    records = nemo_rl.read_dump(dump(tmp_path, 1, [ONE, replace(TWO, counted=0.0)]))
    assert records.tokens == 5
    assert compare_step(records.columns).overall.metrics.tokens == 3


def test_dynamic_sampling_is_said_and_has_its_rewards(tmp_path: Path) -> None:
    for release in ("0.4", "0.7"):
        rows = nemo_rl.read_dump(dump(tmp_path, 1, [ONE, TWO], release, dynamic=True)).to_json()["records"]
        assert [(row["filtered"], row["reward"]) for row in rows] == [("reward", 1.0), ("reward", 0.0)]


def test_zeros_in_the_place_of_logprobs_are_refused_by_name(tmp_path: Path) -> None:
    path = dump(tmp_path, 1, [ONE, TWO])
    rows = [json.loads(text) for text in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**row, "prev_logprobs": [[0.0] * 48]}) + "\n" for row in rows))
    with pytest.raises(RecordError, match="force_on_policy_ratio"):
        nemo_rl.read_dump(path)


def test_line_separators_in_texts_blank_lines_and_windows_ends(tmp_path: Path) -> None:
    path = dump(tmp_path, 1, [replace(ONE, text="one\u2028two\x85three"), TWO])
    lines = [json.dumps(json.loads(text), ensure_ascii=False) for text in path.read_text().split("\n") if text]
    path.write_bytes(("\r\n".join(lines) + "\r\n\n  \n").encode())
    assert nemo_rl.read_dump(path).tokens == 5


def test_what_cannot_be_read_is_named_by_file_and_line(tmp_path: Path) -> None:
    def said(text: str | bytes, name: str = "train_data_step1.jsonl") -> str:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        with pytest.raises(RecordError) as caught:
            nemo_rl.read_dump(path)
        message = str(caught.value)
        assert str(path) in message
        return message

    good = line(ONE, 0, "0.7")
    assert "line 2: not JSON; was the file cut off?" in said(good + good[:200])
    assert "line 1: not JSON" in said(b"\xff\xfe" + good.encode())
    assert "line 1: not JSON" in said("[" * 100_000)
    assert "line 1: a JSON object is expected, not list" in said("[1]\n")
    assert "is empty" in said(" \n")
    assert "no generation_logprobs, prev_logprobs; is it" in said('{"content": ["hi"], "input_lengths": [3], "idx": 0}')
    assert "generation_logprobs is not a list of one item" in said(
        good.replace('"generation_logprobs": [[', '"generation_logprobs": [[1], [')
    )
    row = json.loads(good)
    for name, value, message in (
        ("input_lengths", [1e400], "input_lengths is inf, not a number of tokens"),
        ("input_lengths", [10**400], "not numbers"),
        ("input_lengths", [-1], "not a number of tokens"),
        ("input_lengths", [49], "has shape [48] for input_lengths 49"),
        ("prev_logprobs", [None], "shape"),
        ("prev_logprobs", [["a"] * 48], "prev_logprobs is ['a', 'a'"),
        ("prev_logprobs", [[[1]] * 48], "has shape [48, 1]"),
        ("prev_logprobs", [[[1], 2] * 24], "not numbers"),
        ("token_ids", [[0.5] * 48], "token_ids are not whole numbers"),
        ("token_ids", [[3e9] * 48], "line 1: column prompt_ids"),
        ("rewards", ["high"], "rewards is 'high'"),
        ("sample_loss_mask", [{}], "sample_loss_mask is {}"),
    ):
        assert message in said(json.dumps({**row, name: value})), name
    missing = tmp_path / "train_data_step9.jsonl"
    with pytest.raises(RecordError, match=r"step9\.jsonl cannot be read: No such file"):
        nemo_rl.read_dump(missing)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_line_is_read_or_refused_by_its_number(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("dump") / "train_data_step1.jsonl"
    good = [line(answer, n, "0.7") for n, answer in enumerate((ONE, TWO))]
    row = json.loads(good[1])
    if data.draw(st.booleans()):
        name = data.draw(st.sampled_from([name for name in row if name != "idx"]))
        row[name] = [data.draw(VALUES)] if data.draw(st.booleans()) else data.draw(VALUES)
        text = json.dumps(row).encode()
    else:
        text = good[1].encode()
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(st.binary(max_size=3)) + text[at + data.draw(st.integers(0, 9)) :]
    path.write_bytes(good[0].encode() + text)
    refused = ""
    try:
        nemo_rl.read_dump(path)
    except RecordError as error:
        refused = str(error)
    assert not refused or refused.startswith(str(path))


def test_a_step_of_a_run_that_is_well_agrees(tmp_path: Path) -> None:
    answers = clean_answers(0)
    for release in RELEASES:
        metrics = compare_step(nemo_rl.read_dump(dump(tmp_path, 1, answers, release)).columns).overall.metrics
        assert metrics.tokens == sum(len(answer.rollout) for answer in answers)
        assert metrics.logprob_abs_diff_max < 1e-5
    assert np.isfinite(metrics.logprob_abs_diff_mean)
