"""Weights that one process, or two ranks in turn, write into a slab; whatever fails in one is raised in both."""

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from omni_rl.errors import SlabBusyError, SlabError, SourceError, TrainerDeadError
from omni_rl.sync import fill
from omni_rl.sync.digest import checksums, weights_digest
from omni_rl.sync.group import ALONE, Group
from omni_rl.sync.manifest import Entry, Manifest, end
from omni_rl.sync.released import Released, ReleasedFormat
from omni_rl.sync.slab import Slab

from .conftest import Weights, places, same
from .ranks import RANKS, Ranks, ranks

__all__ = ["ranks"]

PLAIN = ReleasedFormat(float32=("A_log",))


def released(weights: Weights) -> list[Released]:
    return [Released(name, tensor) for name, tensor in weights.items()]


def fill_it(slab: Slab | None, tensors: list[Released], at: tuple[Entry, ...], group: Group = ALONE) -> Manifest:
    return fill.fill(slab, tensors, at, run="r", attempt=2, number=5, origin="trainer", group=group)


def test_one_process_alone_writes_and_seals_everything(slab: Slab, weights: Weights) -> None:
    manifest = fill_it(slab, released(weights), places(weights))
    assert manifest == slab.sealed()
    assert (manifest.version.run, manifest.version.attempt, manifest.version.number) == ("r", 2, 5)
    assert (manifest.origin, manifest.nonfinite) == ("trainer", ())
    assert same(slab.tensors(), weights)
    assert slab.check() == ()
    Slab.open(slab.path).discard()  # nobody is writing any more


def test_what_is_written_has_the_dtype_of_its_place(slab: Slab) -> None:
    masters = {"w": torch.tensor([1.0, 1e-3, 7e4]), "A_log": torch.tensor([0.1]), "steps": torch.tensor([3])}
    at = fill.places_of(released(masters), torch.float16, PLAIN)
    assert {entry.name: entry.dtype for entry in at} == {"A_log": "float32", "steps": "int64", "w": "float16"}
    assert {entry.name: entry.shape for entry in at} == {"A_log": (1,), "steps": (1,), "w": (3,)}
    manifest = fill_it(slab, released(masters), at)
    assert same(slab.tensors(), {name: PLAIN.as_sent(name, masters[name], torch.float16) for name in sorted(masters)})
    assert [str(found) for found in manifest.nonfinite or ()] == ["w: 1 infinite of 3 elements"]


def test_a_row_of_a_stack_is_a_tensor_of_its_own(slab: Slab) -> None:
    stack = torch.arange(24.0).reshape(4, 2, 3)
    tensors = [Released(f"expert.{row}", stack, row) for row in range(4)]
    at = fill.places_of(tensors, torch.float32, PLAIN)
    assert {entry.shape for entry in at} == {(2, 3)}
    fill_it(slab, tensors, at)
    assert same(slab.tensors(), {f"expert.{row}": stack[row] for row in range(4)})


def test_checksums_need_no_slab(weights: Weights) -> None:
    at = places(weights)
    assert fill.digest(released(weights), at) == weights_digest(weights)
    found = fill.checksums(released(weights), at)
    assert {entry.name: entry.checksum for entry in found} == checksums(weights)
    assert [(e.name, e.dtype, e.shape, e.offset) for e in found] == [(e.name, e.dtype, e.shape, e.offset) for e in at]


def test_a_source_with_an_old_claim_writes_nothing(slab: Slab, weights: Weights) -> None:
    old, new = slab.claim(), slab.claim()
    given = {"run": "r", "attempt": 1, "number": 0, "origin": "trainer"}
    with pytest.raises(SlabBusyError, match="was given to another source"):
        fill.fill(slab, released(weights), places(weights), claim=old, **given)  # type: ignore[arg-type]
    assert slab.manifest is None
    fill.fill(slab, released(weights), places(weights), claim=new, **given)  # type: ignore[arg-type]
    assert same(slab.tensors(), weights)


def sharded(of_rank: int, make: Callable[[], Placement], whole: torch.Tensor) -> DTensor:
    """What a rank has of a tensor: its half of the rows, or all of them."""
    dist.init_process_group("fake", store=FakeStore(), rank=of_rank, world_size=RANKS)
    try:
        way, mesh = make(), init_device_mesh("cpu", (RANKS,))
        rows = -(-len(whole) // RANKS)
        local = whole[of_rank * rows : (of_rank + 1) * rows] if isinstance(way, Shard) else whole
        found: DTensor = DTensor.from_local(
            local, mesh, [way], run_check=False, shape=whole.shape, stride=whole.stride()
        )
    finally:
        dist.destroy_process_group()
    return found


ODD = torch.arange(21.0).reshape(7, 3).bfloat16()
ODD[6, 1], ODD[0, 0] = float("nan"), float("inf")
"""The second rank's rows start inside a word."""


def sealed_by_both(ranks: Ranks, slab: Slab, part: Callable[[Group], tuple[Manifest, str]]) -> Manifest:
    """The manifest that both ranks got, which is the one that was sealed, and of the digest that both computed."""
    first, second = ranks.each(part)
    assert not isinstance(first, Exception), first
    assert first == second == (slab.sealed(), slab.sealed().version.digest)
    return first[0]


@pytest.mark.parametrize("way", [lambda: Shard(0), Replicate], ids=["sharded", "replicated"])
def test_two_ranks_write_one_slab(ranks: Ranks, slab: Slab, way: Callable[[], Placement]) -> None:
    weights = {"odd": ODD, "whole": torch.arange(5), "A_log": torch.ones(3)}
    at = places(weights)
    shards = [sharded(rank, way, ODD) for rank in range(RANKS)]

    def part(group: Group) -> tuple[Manifest, str]:
        tensors = released(weights | {"odd": shards[group.rank]})
        return fill_it(Slab.open(slab.path), tensors, at, group), fill.digest(tensors, at, group=group)

    manifest = sealed_by_both(ranks, slab, part)
    assert slab.tensors()["odd"].view(torch.int16).tolist() == ODD.view(torch.int16).tolist()
    assert slab.check() == ()
    assert manifest.version.digest == weights_digest(weights)
    assert [str(found) for found in manifest.nonfinite or ()] == ["odd: 1 NaN and 1 infinite of 21 elements"]


def test_a_rank_without_a_slab_of_its_own_host_writes_nothing_itself(ranks: Ranks, slab: Slab) -> None:
    weights = {"whole": torch.arange(5), "A_log": torch.ones(3)}

    def part(group: Group) -> Manifest:
        return fill_it(Slab.open(slab.path) if group.first else None, released(weights), places(weights), group)

    found = ranks.each(part)
    assert found[0] == found[1] == slab.sealed()
    assert same(slab.tensors(), dict(sorted(weights.items())))


@pytest.mark.parametrize("failing", range(RANKS))
def test_what_fails_in_one_rank_is_raised_in_both_and_nothing_is_sealed(
    ranks: Ranks, slab: Slab, weights: Weights, failing: int
) -> None:
    def part(group: Group) -> Manifest:
        tensors = released(weights)
        if group.rank == failing:
            tensors[2] = Released("unknown", torch.ones(1))
        return fill_it(Slab.open(slab.path), tensors, places(weights), group)

    found = ranks.each(part)
    for error in found:
        assert isinstance(error, SourceError)
        assert str(error) == f"rank {failing} failed to send its weights: KeyError: 'unknown'"
    assert slab.manifest is None
    slab.discard()  # both have left


def test_a_slab_that_is_being_written_is_told_to_both_ranks(ranks: Ranks, slab: Slab, weights: Weights) -> None:
    with slab.writing(places(weights)):
        found = ranks.each(lambda group: fill_it(Slab.open(slab.path), released(weights), places(weights), group))
    assert [type(error) for error in found] == [SlabBusyError] * RANKS


def test_a_slab_that_is_too_small_is_told_to_both_ranks(ranks: Ranks, slab: Slab, weights: Weights) -> None:
    larger = weights | {"zz": torch.ones(1000)}
    assert end(places(larger)) > slab.nbytes
    found = ranks.each(lambda group: fill_it(Slab.open(slab.path), released(larger), places(larger), group))
    assert all(isinstance(error, SlabError) and "zz does not fit" in str(error) for error in found)


def test_results_come_by_rank_and_the_lowest_ranks_error_is_raised(ranks: Ranks) -> None:
    assert ranks.each(lambda group: group.together(lambda: group.rank + 10)) == [[10, 11]] * RANKS

    def fail(group: Group) -> None:
        group.together(lambda: (_ for _ in ()).throw(SlabError(f"of rank {group.rank}")))

    assert [str(error) for error in ranks.each(fail)] == ["of rank 0"] * RANKS
    assert [type(error) for error in ranks.each(fail)] == [SlabError] * RANKS


def test_a_rank_that_died_is_told_to_the_others(ranks: Ranks) -> None:
    ranks.lost = True
    for error in ranks.each(lambda group: group.together(lambda: None)):
        assert isinstance(error, TrainerDeadError)
        assert str(error) == "a rank that writes weights with this one died or fell silent: Connection closed by peer"


def test_a_process_alone_hears_its_own_error() -> None:
    assert (ALONE.first, Group(1, 2).first) == (True, False)
    assert ALONE.together(lambda: 3) == [3]
    with pytest.raises(ZeroDivisionError):
        ALONE.together(lambda: 1 // 0)
