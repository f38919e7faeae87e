"""Ranks that load, save and resume a checkpoint read and write their own slices, and hold nothing else meanwhile."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from omni_rl.checkpoints.build import write_random
from omni_rl.files.weights import weight_files
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.models.nemotron_omni.parallel import load_sharded
from omni_rl.models.nemotron_omni.shards import stored_tensors
from omni_rl.sync.group import Group
from omni_rl.train import checkpoint
from omni_rl.train.settings import TrainSettings
from omni_rl.train.step import build_optimizer
from tests.nursery import run_ranks

from .conftest import CONFIG, LANGUAGE
from .resources import Watch

pytestmark = pytest.mark.slow

MEGABYTE = 10**6
# The process's own allocations while it imports, builds and communicates.
SLACK = 40 * MEGABYTE
LARGE = LANGUAGE | {
    "vocab_size": 8192,
    "hidden_size": 1024,
    "hybrid_override_pattern": "M*EEEE-",
    "num_attention_heads": 8,
    "head_dim": 128,
    "n_routed_experts": 28,
    "moe_intermediate_size": 1024,
    "moe_shared_expert_intermediate_size": 1024,
    "intermediate_size": 2048,
}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gigabyte of random weights in float32; read only."""
    config = NemotronOmniConfig(**json.loads(json.dumps(CONFIG | {"llm_config": LARGE})))
    directory = tmp_path_factory.mktemp("large") / "large"
    return write_random(config, directory, seed=0, dtype=torch.float32)


def _local(tensors: Any) -> int:
    shards = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    return sum(shard.numel() * shard.element_size() for shard in shards)


def _rank(rank: int, ranks: int, source: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=rank, world_size=ranks)
    mesh, group = init_device_mesh("cpu", (ranks,)), Group.default()
    found: dict[str, Any] = {}

    def watched(name: str, act: Callable[[], Any]) -> Any:
        with Watch() as watch:
            result = act()
        found[name] = {"peak": watch.peak, "read": watch.read, "written": watch.written}
        return result

    model = watched("load", lambda: load_sharded(Path(source), mesh))
    found["shard"] = _local(model.state_dict().values())
    watched("save", partial(model.save_pretrained, f"{out}/saved", max_shard_size="100MB"))
    optimizer = build_optimizer(model, TrainSettings(world_size=ranks))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    found["state"] = _local([value for state in optimizer.state.values() for value in state.values()])
    state = checkpoint.optimizer_tensors(model, optimizer)
    watched(
        "save state",
        partial(
            checkpoint.write,
            Path(out, "state"),
            model.write_beside,
            stored_tensors(model, torch.float32),
            state,
            {},
            group,
            run="run",
            attempt=1,
            number=1,
            dtype="float32",
        ),
    )
    del model, optimizer, state  # what is resumed is all that there is

    def resume() -> Any:
        checkpoint.read_record(Path(out, "state"), group)
        model = load_sharded(Path(out, "state"), mesh)
        optimizer = build_optimizer(model, TrainSettings(world_size=ranks))
        checkpoint.load_optimizer(model, optimizer, Path(out, "state"))
        return model, optimizer

    kept = watched("resume", resume)
    kept[0].save_pretrained(f"{out}/resumed", max_shard_size="100MB")
    Path(out, f"found.{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [2, 4])
def test_no_rank_holds_or_reads_more_than_its_own(large: Path, tmp_path: Path, ranks: int) -> None:
    run_ranks(tmp_path / "log", ranks, _rank, ranks, str(large), str(tmp_path))
    size = (large / "model.safetensors").stat().st_size
    assert size > 1000 * MEGABYTE
    allowed = 0.15 * size
    state_size = 3 * size
    for rank in range(ranks):
        found = json.loads((tmp_path / f"found.{rank}.json").read_text())
        shard, state = found["shard"], found["state"]
        assert shard < size / ranks + 0.01 * size
        assert found["load"]["peak"] < shard + allowed
        assert found["load"]["read"] < shard + SLACK
        assert found["save"]["peak"] < allowed
        assert found["save"]["written"] < shard + SLACK
        # Of what it wrote, it reads as much back, for the record's digests.
        assert found["save state"]["peak"] < allowed
        assert found["save state"]["written"] < shard + state + SLACK
        assert found["save state"]["read"] < 1.3 * state_size / ranks + SLACK
        assert found["resume"]["peak"] < shard + state + allowed
        assert found["resume"]["read"] < shard + state + 1.3 * state_size / ranks + SLACK
    expected = load_file(large / "model.safetensors")
    files = weight_files(tmp_path / "saved")
    assert len(files) >= 8
    assert all(path.stat().st_size < 101 * MEGABYTE for path in files)
    written = {name: tensor for path in files for name, tensor in load_file(path).items()}
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in expected.items())
    # One process writes the same files, to the byte, and so did the ranks of what they resumed.
    alone = NemotronOmniForConditionalGeneration.from_pretrained(tmp_path / "state")
    alone.save_pretrained(tmp_path / "alone", max_shard_size="100MB")
    for path in files:
        assert (tmp_path / "alone" / path.name).read_bytes() == (tmp_path / "resumed" / path.name).read_bytes()
    assert sorted(os.listdir(tmp_path / "alone")) == sorted(os.listdir(tmp_path / "resumed"))
