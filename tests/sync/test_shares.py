"""What one process contributes to tensors, in every sharding; and the pieces in which threads take them."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard
from torch.testing._internal.distributed.fake_pg import FakeStore

from omni_rl.sync import pieces
from omni_rl.sync.checksum import Checksum
from omni_rl.sync.parts import Shares, own_rows
from omni_rl.sync.pieces import AHEAD, THREADS, TensorPart, checksum_of, in_threads, take_all, totals
from omni_rl.sync.released import Released

ROWS = torch.arange(24.0).reshape(4, 2, 3)


@pytest.fixture
def rank(request: pytest.FixtureRequest) -> Iterator[int]:
    """Of four."""
    dist.init_process_group("fake", store=FakeStore(), rank=request.param, world_size=4)
    yield request.param
    dist.destroy_process_group()


def held(local: torch.Tensor, mesh: DeviceMesh, *placements: Placement, whole: torch.Tensor | None = None) -> DTensor:
    shape = None if whole is None else whole.shape
    stride = None if whole is None else whole.stride()
    found: DTensor = DTensor.from_local(local, mesh, placements, run_check=False, shape=shape, stride=stride)
    return found


def grid() -> DeviceMesh:
    """Two groups that hold the same, of two processes that share it."""
    return init_device_mesh("cpu", (2, 2))


def same(found: tuple[int, torch.Tensor] | None, start: int, share: torch.Tensor) -> bool:
    return found is not None and found[0] == start and torch.equal(found[1], share)


NOTHING = torch.empty(0)


@pytest.mark.parametrize("rank", range(4), indirect=True)
def test_of_two_groups_that_hold_the_same_rows_the_first_contributes_them(rank: int) -> None:
    part = rank % 2
    local = ROWS[2 * part : 2 * part + 2]
    released = Released("w", held(local, grid(), Replicate(), Shard(0)))
    assert (released.shape, released.dtype) == ((4, 2, 3), torch.float32)
    assert same(own_rows(released), 12 * part, local)
    share = Shares(first=rank == 0).of(released)
    assert same(share, 12 * part if rank < 2 else 0, local if rank < 2 else NOTHING)
    for row in range(4):
        mine = own_rows(Released("w", released.tensor, row))
        assert same(mine, 0, ROWS[row] if row // 2 == part else NOTHING)
        share = Shares(first=rank == 0).of(Released("w", released.tensor, row))
        assert same(share, 0, ROWS[row] if row // 2 == part and rank < 2 else NOTHING)


@pytest.mark.parametrize("rank", range(4), indirect=True)
def test_where_there_are_fewer_rows_than_processes_some_have_none(rank: int) -> None:
    whole = ROWS[:2]
    released = Released("w", held(whole[rank : rank + 1], init_device_mesh("cpu", (4,)), Shard(0), whole=whole))
    assert same(own_rows(released), 6 * rank if rank < 2 else 0, whole[rank : rank + 1] if rank < 2 else NOTHING)


@pytest.mark.parametrize("rank", [0, 3], indirect=True)
def test_a_scalar_that_all_have_is_one_element(rank: int) -> None:
    released = Released("w", held(torch.tensor(7.0), grid(), Replicate(), Replicate()))
    assert released.shape == ()
    assert same(own_rows(released), 0, torch.tensor(7.0))
    assert same(Shares(first=rank == 0).of(released), 0, torch.tensor(7.0) if rank == 0 else NOTHING)


@pytest.mark.parametrize("rank", [0, 2], indirect=True)
@pytest.mark.parametrize("gather", [False, True])
def test_a_plain_tensor_is_contributed_by_the_first_process(rank: int, gather: bool) -> None:
    shares = Shares(first=rank == 0, gather=gather)
    whole = ROWS.clone().requires_grad_()
    start, share = shares.of(Released("w", whole))
    assert not share.requires_grad
    assert same((start, share), 0, ROWS if rank == 0 else NOTHING)
    stacked = Released("w.1", whole, 1)
    assert stacked.shape == (2, 3)
    assert same(shares.of(stacked), 0, ROWS[1] if rank == 0 else NOTHING)
    assert same(own_rows(stacked), 0, ROWS[1])
    assert same(own_rows(Released("w.0", whole, 0)), 0, ROWS[0])


@pytest.mark.parametrize("rank", [0, 1], indirect=True)
def test_all_is_gathered_for_the_first_process_where_that_is_asked_for(rank: int) -> None:
    tensor = held(ROWS, grid(), Replicate(), Replicate())
    shares = Shares(first=rank == 0, gather=True)
    for row in (0, 3):
        assert same(shares.of(Released("w", tensor, row)), 0, ROWS[row] if rank == 0 else NOTHING)
    assert same(shares.of(Released("w", tensor)), 0, ROWS if rank == 0 else NOTHING)
    other = held(ROWS + 1, grid(), Replicate(), Replicate())
    assert same(shares.of(Released("v", other)), 0, ROWS + 1 if rank == 0 else NOTHING)


@pytest.mark.parametrize("rank", [0, 1], indirect=True)
@pytest.mark.parametrize("way", [Shard(1), _StridedShard(0, split_factor=2)], ids=["columns", "strided"])
def test_shardings_that_give_no_rows_are_gathered(rank: int, way: Placement) -> None:
    """What is gathered is not there to look at: the other processes are not."""
    local = ROWS[:, :1] if isinstance(way, Shard) and way.dim == 1 else ROWS[:2]
    released = Released("w", held(local, init_device_mesh("cpu", (4,)), way, whole=ROWS))
    assert own_rows(released) is None
    start, share = Shares(first=rank == 0).of(released)
    assert (start, share.numel()) == (0, ROWS.numel() if rank == 0 else 0)


@pytest.mark.parametrize("rank", [0, 1], indirect=True)
def test_a_process_outside_the_mesh_contributes_nothing(rank: int) -> None:
    mesh = DeviceMesh("cpu", [0])
    released = Released("w", held(ROWS if rank == 0 else ROWS[:0], mesh, Shard(0), whole=ROWS))
    assert same(Shares(first=rank == 0).of(released), 0, ROWS if rank == 0 else NOTHING)


@pytest.mark.parametrize(
    ("elements", "itemsize", "found"),
    [
        (0, 4, []),
        (1, 4, [(0, 1)]),
        (4, 4, [(0, 4)]),
        (5, 4, [(0, 4), (4, 5)]),
        (8, 4, [(0, 4), (4, 8)]),
        (17, 1, [(0, 16), (16, 17)]),
    ],
)
def test_pieces_cover_all_elements_in_order(
    elements: int, itemsize: int, found: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 16)
    assert [(piece.start, piece.stop) for piece in pieces.pieces(elements, itemsize)] == found


@pytest.mark.parametrize("piece_bytes", [8, 16, 2**23])
def test_parts_are_taken_as_their_dtype_from_their_element_on(
    piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", piece_bytes)
    values = torch.arange(12.0).reshape(3, 4)
    taken: list[tuple[str, int, list[float], torch.dtype]] = []

    def take(name: str, part: torch.Tensor, start: int) -> Checksum:
        taken.append((name, start, part.tolist(), part.dtype))
        return checksum_of(name, part, start)

    parts = [
        TensorPart("t", 0, values.t(), torch.bfloat16),
        TensorPart("e", 0, torch.empty(0, 3), torch.float32),
        TensorPart("s", 0, torch.tensor(5), torch.int64),
        TensorPart("t", 12, values[0], torch.bfloat16),
    ]
    found = take_all(parts, take)
    assert set(found) == {"t", "s"}
    whole = torch.cat([values.t().reshape(-1), values[0]]).bfloat16()
    assert str(found["t"]) == str(Checksum.of_tensor(whole))
    of_t = sorted((start, part) for name, start, part, _ in taken if name == "t")
    assert [value for _, part in of_t for value in part] == whole.tolist()
    assert all(start == sum(len(part) for first, part in of_t if first < start) for start, _ in of_t)
    assert max(len(part) * 2 for _, part in of_t) <= piece_bytes
    assert {dtype for name, _, _, dtype in taken if name == "t"} == {torch.bfloat16}


def test_a_large_tensor_is_enough_for_several_threads_and_not_for_thousands_of_tasks() -> None:
    sizes: list[int] = []

    def take(name: str, part: torch.Tensor, start: int) -> Checksum:
        sizes.append(part.nbytes)
        return Checksum.total(())

    take_all([TensorPart("t", 0, torch.empty(2**26 + 1), torch.float32)], take)
    assert sum(sizes) == 2**28 + 4
    assert 2 * THREADS <= len(sizes) < 1000


def test_tasks_that_wait_when_one_fails_are_never_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    leaving = threading.Event()

    class Pool(ThreadPoolExecutor):
        def __exit__(self, *raised: object) -> None:
            leaving.set()
            self.shutdown()

    begun: list[int] = []

    def task(number: int) -> None:
        begun.append(number)
        if number == 0:
            raise ValueError("the first")
        assert leaving.wait(10)

    monkeypatch.setattr(pieces, "ThreadPoolExecutor", Pool)
    with pytest.raises(ValueError, match="the first"):
        list(in_threads(partial(task, number) for number in range(AHEAD)))
    assert begun in ([0], [0, 1])


def test_small_parts_are_joined_until_they_are_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 16)
    at_once: list[int] = []

    def one_by_one(tasks: Iterable[Callable[[], list[tuple[str, Checksum]]]]) -> Iterator[list[tuple[str, Checksum]]]:
        for task in tasks:
            found = task()
            at_once.append(len(found))
            yield found

    monkeypatch.setattr(pieces, "in_threads", one_by_one)
    parts = [TensorPart(f"t{size}", 0, torch.zeros(size), torch.float32) for size in (1, 3, 2, 2, 1, 4, 1)]
    assert len(take_all(parts, checksum_of)) == 4
    assert at_once == [2, 2, 2, 1]


def test_shares_of_a_key_are_added() -> None:
    data = np.arange(40, dtype=np.uint8)
    shares = [[("a", Checksum.of(data[:8])), ("b", Checksum.of(data))], [("a", Checksum.of(data[8:], 8))], []]
    found = totals(shares)
    assert {name: str(total) for name, total in found.items()} == dict.fromkeys("ab", str(Checksum.of(data)))
    assert totals([]) == {}


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (3, 3), (4, 4), (64, 4)])
def test_tasks_are_drawn_some_ahead_and_no_more_threads_work_than_there_are_cores(
    cores: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    drawn: list[int] = []

    def tasks() -> Iterator[Callable[[], int]]:
        for number in range(200):
            drawn.append(number)
            yield partial(int, number)

    made = in_threads(tasks())
    next(made)
    assert threads == min(cores, THREADS)
    assert len(drawn) == AHEAD * threads
    next(made)
    assert len(drawn) == AHEAD * threads + 1
    made.close()  # type: ignore[attr-defined]
    assert len(drawn) == AHEAD * threads + 1
