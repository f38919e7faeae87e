"""The parts of a layout map, by hand: runs of elements, the blocks that they make up, and the bytes that these copy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from omni_rl.sync.checksum import Checksum
from omni_rl.sync.layout import Kind, Mismatch, moves, named
from omni_rl.sync.layout.blocks import ElementRun, StridedBlock, Transform, blocks, runs
from omni_rl.sync.layout.compare import differing, same_bits
from omni_rl.sync.layout.findings import listed
from omni_rl.sync.layout.moves import Moves
from omni_rl.sync.pieces import totals

TWO_ROWS = StridedBlock(0, 1, Transform.COPY, 2, 3, source=1, source_stride=4, target=2, target_stride=5)


@pytest.mark.parametrize(
    ("changes", "released", "stored", "fits"),
    [
        ({}, 8, 10, True),
        ({}, 7, 10, False),
        ({}, 8, 9, False),
        ({"rows": 1}, 4, 5, True),
        ({"rows": 1}, 3, 5, False),
        ({"rows": 1}, 4, 4, False),
        ({"rows": 1, "length": 1}, 2, 3, True),
        ({"rows": 0}, 99, 99, False),
        ({"length": 0}, 99, 99, False),
        ({"source": 0, "target": 0, "source_stride": 0, "target_stride": 0}, 3, 3, True),
        ({"source": -1}, 99, 99, False),
        ({"source_stride": -1}, 99, 99, False),
        ({"target": -1}, 99, 99, False),
        ({"target_stride": -1}, 99, 99, False),
    ],
)
def test_a_block_fits_up_to_its_last_element(changes: dict[str, Any], released: int, stored: int, fits: bool) -> None:
    assert TWO_ROWS._replace(**changes).fits(released, stored) == fits


def test_a_block_is_a_view_of_either_side() -> None:
    tensor, storage = torch.arange(100, 112), torch.arange(50)[7:]
    assert TWO_ROWS.elements == 6
    assert TWO_ROWS.of_tensor(tensor).tolist() == [[101, 102, 103], [105, 106, 107]]
    assert TWO_ROWS.of_storage(storage).tolist() == [[9, 10, 11], [14, 15, 16]]
    one = TWO_ROWS._replace(rows=1)
    assert one.of_tensor(tensor).tolist() == [101, 102, 103]
    assert one.of_storage(storage).tolist() == [9, 10, 11]
    TWO_ROWS.of_storage(storage).fill_(0)
    assert storage[:10].tolist() == [7, 8, 0, 0, 0, 12, 13, 0, 0, 0]
    assert TWO_ROWS.places(torch.arange(6)).tolist() == [2, 3, 4, 7, 8, 9]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_value_becomes_what_a_loader_makes_of_it(dtype: torch.dtype) -> None:
    values = torch.tensor([0.0, 1.25, -3.0, 2.00001])
    assert torch.equal(Transform.COPY(values, dtype), values.to(dtype))
    decay = Transform.NEGATIVE_EXPONENTIAL(values, dtype)
    assert decay.dtype == dtype
    expected = -np.exp(values.to(dtype).float().numpy())
    assert torch.allclose(decay.float(), torch.from_numpy(expected).to(dtype).float(), rtol=1e-6)
    assert TWO_ROWS.kind is Kind.RELEASED
    assert TWO_ROWS._replace(transform=Transform.NEGATIVE_EXPONENTIAL).kind is Kind.TRANSFORMED


# Three tensors of 4, 0 and 3 elements.
FIRST = [0, 4, 4, 7]


@pytest.mark.parametrize(
    ("numbers", "transforms", "found"),
    [
        ([], [], []),
        ([-1, -1], None, []),
        ([0], None, [(0, 0, 1, 0, 0)]),
        ([-1, 0, 1, -1, -1, 2], None, [(0, 0, 2, 0, 1), (0, 0, 1, 2, 5)]),
        ([0, 1, 2, 3, 4, 5, 6], None, [(0, 0, 4, 0, 0), (2, 0, 3, 0, 4)]),
        ([3, 4], None, [(0, 0, 1, 3, 0), (2, 0, 1, 0, 1)]),
        ([6, 5, 5, 2], None, [(2, 0, 1, 2, 0), (2, 0, 1, 1, 1), (2, 0, 1, 1, 2), (0, 0, 1, 2, 3)]),
        ([0, 2, 3], None, [(0, 0, 1, 0, 0), (0, 0, 2, 2, 1)]),
        ([0, 1, 2, 3], [0, 0, 1, 1], [(0, 0, 2, 0, 0), (0, 1, 2, 2, 2)]),
        ([4, 5, -1], [1, 1, 0], [(2, 1, 2, 0, 0)]),
    ],
)
def test_elements_that_follow_each_other_on_both_sides_are_one_run(
    numbers: Sequence[int], transforms: Sequence[int] | None, found: list[tuple[int, ...]]
) -> None:
    through = np.array(transforms if transforms is not None else [0] * len(numbers), np.int8)
    made = list(runs(np.array(numbers, np.int32), through, np.array(FIRST)))
    assert made == [ElementRun(*run) for run in found]


def test_a_run_ends_where_its_tensor_ends_and_goes_on_in_the_next() -> None:
    numbers = np.arange(1, 6)
    found = list(runs(numbers, np.zeros(5, np.int8), np.array([0, 2, 3, 6])))
    assert found == [ElementRun(0, 0, 1, 1, 0), ElementRun(1, 0, 1, 0, 1), ElementRun(2, 0, 3, 0, 2)]


def run(source: int, target: int, length: int = 2, tensor: int = 0, transform: int = 0) -> ElementRun:
    return ElementRun(tensor, transform, length, source, target)


@pytest.mark.parametrize(
    ("pieces", "found"),
    [
        ([], []),
        ([run(3, 4)], [(1, 2, 3, 0, 4, 0)]),
        ([run(3, 4), run(9, 5)], [(2, 2, 3, 6, 4, 1)]),
        ([run(3, 4), run(3, 6)], [(2, 2, 3, 0, 4, 2)]),
        ([run(3, 4), run(2, 6)], [(1, 2, 3, 0, 4, 0), (1, 2, 2, 0, 6, 0)]),
        ([run(0, 0), run(3, 4), run(6, 8), run(9, 12)], [(4, 2, 0, 3, 0, 4)]),
        ([run(0, 0), run(3, 4), run(6, 9)], [(2, 2, 0, 3, 0, 4), (1, 2, 6, 0, 9, 0)]),
        ([run(0, 0), run(3, 4), run(7, 8)], [(2, 2, 0, 3, 0, 4), (1, 2, 7, 0, 8, 0)]),
        ([run(0, 0), run(3, 4, length=1)], [(1, 2, 0, 0, 0, 0), (1, 1, 3, 0, 4, 0)]),
    ],
)
def test_runs_at_equal_distances_are_one_block(pieces: list[ElementRun], found: list[tuple[int, ...]]) -> None:
    made = list(blocks(5, pieces))
    assert [tuple(block)[3:] for block in made] == found
    assert {block.storage for block in made} <= {5}


def test_runs_of_other_tensors_or_transforms_are_blocks_of_their_own() -> None:
    made = list(blocks(0, [run(0, 0), run(2, 2, tensor=1), run(4, 4, tensor=1, transform=1)]))
    assert [(block.tensor, block.transform) for block in made] == [
        *((0, Transform.COPY), (1, Transform.COPY), (1, Transform.NEGATIVE_EXPONENTIAL))
    ]
    assert all(type(block.transform) is Transform for block in made)


@pytest.mark.parametrize("piece_bytes", [8, 24, 2**23])
def test_rows_are_copied_and_summed_in_pieces(piece_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moves, "PIECE_BYTES", piece_bytes)
    wide = StridedBlock(0, 0, Transform.COPY, 3, 5, source=1, source_stride=6, target=2, target_stride=7)
    narrow = StridedBlock(1, 1, Transform.COPY, 1, 9, source=0, source_stride=0, target=3, target_stride=0)
    sources = [torch.arange(20, dtype=torch.float32), torch.arange(9, dtype=torch.int16)]
    targets = [torch.full((30,), -1.0), torch.full((15,), -1, dtype=torch.int16)]
    made = Moves([wide, narrow], [4, 2])
    tasks = list(made.copies(sources, targets))
    assert len(tasks) == {8: 9, 24: 4, 2**23: 1}[piece_bytes]
    for task in tasks:
        task()
    rows = [[1, 2, 3, 4, 5], [7, 8, 9, 10, 11], [13, 14, 15, 16, 17]]
    assert targets[0].tolist() == [-1, -1, *rows[0], -1, -1, *rows[1], -1, -1, *rows[2]] + [-1] * 9
    assert targets[1].tolist() == [-1] * 3 + list(range(9)) + [-1] * 3

    found = {tensor: str(total) for tensor, total in totals(task() for task in made.checksums(targets)).items()}
    sent = torch.zeros(20)
    for row, first in zip(rows, (1, 7, 13), strict=True):
        sent[first : first + 5] = torch.tensor(row)
    assert found == {0: str(Checksum.of_tensor(sent)), 1: str(Checksum.of_tensor(sources[1]))}


def test_no_blocks_are_no_work() -> None:
    assert [task() for task in Moves([], []).copies([], [])] in ([], [None])
    assert totals(task() for task in Moves([], []).checksums([])) == {}


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("strided", [False, True])
def test_tensors_are_compared_by_their_bits(dtype: torch.dtype, strided: bool) -> None:
    values = torch.tensor([[1, 0, 3], [4, 5, 6]]).to(dtype)
    if dtype.is_floating_point:
        values[0, 0] = torch.nan
    one, other = values.clone(), values.clone()
    if strided:
        one, other = one.t(), other.t()
    assert same_bits(one, other)
    assert differing(one, other).tolist() == []
    other[0, 1] = other[1, 0] = -0.0 if dtype.is_floating_point else 7
    assert not same_bits(one, other)
    assert differing(one, other).tolist() == [1, other.shape[1]]


@pytest.mark.parametrize(("count", "told"), [(9, "t8"), (10, "t9"), (11, "t9 ...")])
def test_of_many_names_ten_are_told(count: int, told: str) -> None:
    assert listed([f"t{number}" for number in range(count)]).endswith(f", {told}")
    assert listed([]) == ""


def test_a_mismatch_is_a_sentence() -> None:
    one = Mismatch("q", "qkv", Kind.RELEASED, 0, 1)
    assert str(one) == "qkv (released as q): 1 released element differs, the first is 0"
    many = Mismatch(None, "norm", Kind.PADDING, 7, 2)
    assert str(many) == "norm: 2 padding elements differ, the first is 7"
    given = Mismatch("q", "qkv", Kind.TRANSFORMED, None, 2)
    assert str(given) == (
        "qkv (released as q): what was given to the engine does not have the checksum of what was sent"
    )
    assert named([one, many]) == f"{one}; {many}"
