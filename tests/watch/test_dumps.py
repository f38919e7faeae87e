"""Files of any kind as steps: by their content, their names and their columns."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_rl.errors import RecordError
from omni_rl.ledger.records import StepRecords
from omni_rl.watch.readers.dumps import read_steps
from tests.watch.nemo_rl import clean_answers, dump

ROWS: list[dict[str, Any]] = [
    {"sample": "a", "rollout_logprobs": [-1.0, -2.0], "train_logprobs": [-1.0, -2.5], "ids": [3, 4], "kind": "text"},
    {"sample": "b", "rollout_logprobs": [-0.5], "train_logprobs": [-0.5], "ids": [5], "kind": "math"},
]


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def arrow_file(path: Path, rows: list[dict[str, Any]]) -> Path:
    feather.write_feather(pa.Table.from_pylist(rows), str(path), compression="zstd")
    return path


def arrow_stream(path: Path, rows: list[dict[str, Any]]) -> Path:
    made = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, made.schema) as writer:
        writer.write_table(made)
    return path


def json_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return path


WRITERS = [parquet, arrow_file, arrow_stream, json_lines]
Write = Callable[[Path, list[dict[str, Any]]], Path]


@pytest.mark.parametrize("write", WRITERS)
def test_records_in_any_file(tmp_path: Path, write: Write) -> None:
    (step,) = read_steps([write(tmp_path / "rank1-step12.data", ROWS)])
    assert (step.step, list(step.parts)) == (12, [1])
    assert step.parts[1].samples == ["a", "b"]
    assert step.parts[1].kinds == ["text", "math"]
    assert step.parts[1].columns.train_logprobs.tolist() == [-1.0, -2.5, -0.5]


@pytest.mark.parametrize("write", WRITERS)
def test_columns_say_step_and_rank(tmp_path: Path, write: Write) -> None:
    rows = [{**row, "step": step, "rank": rank} for step in (4, 2) for rank in (1, 0) for row in ROWS]
    found = list(read_steps([write(tmp_path / "7.data", rows)]))
    assert [(step.step, list(step.parts)) for step in found] == [(2, [0, 1]), (4, [0, 1])]
    assert all(part.samples == ["a", "b"] for step in found for part in step.parts.values())


def test_what_was_posted_is_read_again(tmp_path: Path) -> None:
    records = StepRecords.of(ROWS[:1])
    (tmp_path / "3.arrow").write_bytes(records.to_arrow())
    (tmp_path / "4.json").write_text(json.dumps(records.to_json(), indent=1))
    found = list(read_steps([tmp_path]))
    assert [step.step for step in found] == [3, 4]
    assert all(step.parts[0].digest == records.digest for step in found)


def test_a_directory_of_nemo_rl(tmp_path: Path) -> None:
    for step in (10, 9):
        dump(tmp_path, step, clean_answers(step), "0.5" if step == 9 else "0.7")
    (tmp_path / "val_data_step10.jsonl").write_text('{"content": ["hi"]}\n')
    (tmp_path / "other.json").write_text("{}")
    nine, ten = read_steps([tmp_path])
    assert (nine.step, ten.step) == (9, 10)
    assert "before 0.6" in nine.notes[0]
    assert ten.notes == ()


def test_files_without_a_number_are_in_the_order_given(tmp_path: Path) -> None:
    files = [parquet(tmp_path / name, ROWS) for name in ("later.parquet", "earlier.parquet")]
    assert [step.files for step in read_steps(files)] == [(files[0],), (files[1],)]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("rank0", "rank1"), [(0, [0, 1])]),
        (("a-rank0", "b-rank0", "a-rank1", "b-rank1"), [(0, [0, 1]), (1, [0, 1])]),
        (("12-rank0", "13-rank0", "12-rank1"), [(12, [0, 1]), (13, [0])]),
        (("rank_1-7", "rank.0.7"), [(7, [0, 1])]),
    ],
)
def test_a_ranks_number_in_a_name_is_not_the_steps(
    tmp_path: Path, names: tuple[str, ...], found: list[tuple[int, list[int]]]
) -> None:
    files = [parquet(tmp_path / f"{name}.parquet", ROWS) for name in names]
    assert [(step.step, list(step.parts)) for step in read_steps(files)] == found


def refused(path: Path) -> str:
    with pytest.raises(RecordError) as caught:
        list(read_steps([path]))
    return str(caught.value)


def test_dumps_without_logprobs_are_refused_by_name(tmp_path: Path) -> None:
    verl = {"input": "q", "output": "a", "gts": None, "score": 1.0, "step": 12, "acc": 1.0}
    assert "verl's rollout dump has texts and scores" in refused(json_lines(tmp_path / "12.jsonl", [verl]))
    trl = {"step": 12, "prompt": "q", "completion": "a", "exact_match": 1.0, "advantage": 0.5}
    assert "TRL's completions have texts and rewards" in refused(parquet(tmp_path / "completions_00012.parquet", [trl]))


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "gone.jsonl")
    assert "has no train_data_step*.jsonl" in refused(tmp_path)
    for name, content in (("a", b"PAR1 and more"), ("b", b"ARROW1\0\0 and more"), ("c", b"\xff\xff\xff\xff\0\0")):
        path = tmp_path / name
        path.write_bytes(content)
        assert "cannot be read" in refused(path), name
    (tmp_path / "cut.parquet").write_bytes(b"\1\2\3")
    assert "neither Parquet nor Arrow" in refused(tmp_path / "cut.parquet")
    (tmp_path / "d").write_text('{"schema": "omni_rl.step/9", "records": []}')
    assert "omni_rl.step/9" in refused(tmp_path / "d")
    typo = [{**ROWS[0], "los_mask": [True, True]}]
    assert "line 1: unknown columns los_mask" in refused(json_lines(tmp_path / "e.jsonl", typo))
    assert "unknown columns los_mask" in refused(parquet(tmp_path / "e.parquet", typo))
    short = [ROWS[0], {**ROWS[1], "train_logprobs": [-0.5, -0.5]}]
    assert "line 2" in refused(json_lines(tmp_path / "f.jsonl", short))
    assert "f.parquet" in refused(parquet(tmp_path / "f.parquet", short))
    assert 'step is "x", not a whole number' in refused(json_lines(tmp_path / "g.jsonl", [{**ROWS[0], "step": "x"}]))
    assert "column step is double" in refused(parquet(tmp_path / "g.parquet", [{**ROWS[0], "step": 1.5}]))
    for name in ("step", "kind"):
        table = pa.table([pa.array([1]), pa.array([2])], [name, name])
        with pa.ipc.new_file(str(tmp_path / "twice.arrow"), table.schema) as file:
            file.write_table(table)
        assert "twice.arrow: a column is there twice" in refused(tmp_path / "twice.arrow")
    json_lines(tmp_path / "h1-step3.jsonl", ROWS)
    json_lines(tmp_path / "h2-step3.jsonl", ROWS)
    with pytest.raises(RecordError, match=r"step 3 of rank 0 is in .*h1-step3\.jsonl and in .*h2-step3\.jsonl"):
        list(read_steps([tmp_path / "h1-step3.jsonl", tmp_path / "h2-step3.jsonl"]))
    with pytest.raises(RecordError, match="given twice"):
        list(read_steps([tmp_path / "h1-step3.jsonl"] * 2))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)
COLUMNS = ("sample", "kind", "rollout_logprobs", "train_logprobs", "ids", "loss_mask", "media", "version_spans", "step")


@settings(max_examples=300, deadline=None)
@given(changed=st.dictionaries(st.sampled_from(COLUMNS), VALUES, max_size=3))
def test_any_line_is_read_or_refused(changed: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = json_lines(tmp_path_factory.mktemp("lines") / "1.jsonl", [ROWS[0], {**ROWS[1], **changed}])
    said = ""
    try:
        list(read_steps([path]))
    except RecordError as error:
        said = str(error)
    assert not said or said.startswith(str(path))


@settings(max_examples=200, deadline=None)
@given(data=st.data(), write=st.sampled_from([parquet, arrow_file, arrow_stream]))
def test_any_damaged_table_is_read_or_refused(
    data: st.DataObject, write: Write, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(tmp_path_factory.mktemp("table") / "1", ROWS)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=4))
    path.write_bytes(content)
    said = ""
    try:
        list(read_steps([path]))
    except RecordError as error:
        said = str(error)
    assert not said or said.startswith(str(path))
