"""Two ranks of torch's DistributedDataParallel, each with other kinds of prompts, against one process."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from tests.nursery import run_ranks

RANKS = 2
pytestmark = pytest.mark.slow


def _batch(rank: int) -> dict[str, Any]:
    """Of the first rank an image, of the second a sound: each leaves another tower unused."""
    generator = torch.Generator().manual_seed(rank)
    ids = torch.randint(40, 300, (2, 20), generator=generator)
    found: dict[str, Any] = {"input_ids": ids, "labels": ids.clone()}
    if rank == 0:
        ids[:, 5:9] = 18
        return found | {"pixel_values": torch.randn(2, 3, 64, 64, generator=generator)}
    ids[0, 5:10] = 27
    return found | {"sound_features": torch.randn(1, 40, 16, generator=generator)}


def _rank(rank: int, checkpoint: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=rank, world_size=RANKS)
    model = NemotronOmniForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    wrapped = DistributedDataParallel(model)
    for _ in range(2):  # a parameter that one pass left out would end the next
        model.zero_grad()
        wrapped(**_batch(rank)).loss.backward()
    torch.save({name: p.grad for name, p in model.named_parameters()}, f"{out}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_gradients_are_the_mean_of_the_ranks(saved: Path, tmp_path: Path) -> None:
    run_ranks(tmp_path / "log", RANKS, _rank, str(saved), str(tmp_path))
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS)]
    model = NemotronOmniForConditionalGeneration.from_pretrained(saved, dtype=torch.float32)
    sum(model(**_batch(rank)).loss for rank in range(RANKS)).backward()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None, name
        for found in ranks:
            apart = (found[name] - parameter.grad / RANKS).norm()
            assert apart / (parameter.grad.norm() + 1e-4) < 1e-4, name
