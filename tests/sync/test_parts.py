"""What one process of several contributes to the tensors that they hold together; the others are not there."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from omni_rl.sync.parts import Shares, own_rows
from omni_rl.sync.released import Released

ROWS = torch.arange(24.0).reshape(4, 2, 3)


@pytest.fixture(params=[0, 1])
def rank(request: pytest.FixtureRequest) -> Iterator[int]:
    """Of two."""
    dist.init_process_group("fake", store=FakeStore(), rank=request.param, world_size=2)
    yield request.param
    dist.destroy_process_group()


def held(local: torch.Tensor, placement: Placement) -> torch.Tensor:
    found: torch.Tensor = DTensor.from_local(local, init_device_mesh("cpu", (2,)), [placement], run_check=False)
    return found


def test_of_rows_that_all_processes_have_the_first_one_contributes_all(rank: int) -> None:
    start, share = Shares(first=rank == 0).of(Released("w", held(ROWS, Replicate())))
    assert start == 0
    assert torch.equal(share, ROWS if rank == 0 else torch.empty(0))


def test_sharded_rows_are_contributed_by_the_process_that_has_them(rank: int) -> None:
    local = ROWS[2 * rank : 2 * rank + 2]
    sharded = held(local, Shard(0))
    start, share = Shares(first=rank == 0).of(Released("w", sharded))
    assert start == rank * local.numel()
    assert torch.equal(share, local)
    for row in range(4):
        found = own_rows(Released(f"w.{row}", sharded, row))
        assert found is not None
        assert found[0] == 0
        assert torch.equal(found[1], ROWS[row] if row // 2 == rank else torch.empty(0))
