"""A trainer's fingerprints: names and dtypes that engines have, adapters, and shards that are added over ranks."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from omni_rl.agent import trainer
from omni_rl.agent.fingerprint import total
from omni_rl.agent.tensors import fingerprint
from omni_rl.agent.trainer import adapters, fingerprints, of_tensors
from tests.agent import ranks
from tests.nursery import said_by, shared, torchrun


@pytest.mark.parametrize("transposed", [False, True])
def test_fused_experts_are_told_expert_by_expert(transposed: bool) -> None:
    gate, up, down = torch.randn(3, 4, 6), torch.randn(3, 4, 6), torch.randn(3, 6, 4)
    fused = torch.cat([gate, up], 1)
    stored = {"gate_up_proj": fused, "down_proj": down}
    if transposed:
        stored = {name: value.transpose(1, 2).contiguous() for name, value in stored.items()}
    found = of_tensors((f"layers.0.mlp.experts.{name}", value) for name, value in stored.items())
    for number in range(3):
        for name, value in (("gate_proj", gate), ("up_proj", up), ("down_proj", down)):
            (one,) = found[f"layers.0.mlp.experts.{number}.{name}.weight"]
            assert one.same(fingerprint(value[number]))


def test_each_part_comes_in_its_own_dtype_and_in_the_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small one comes as rounded, too: an engine may hold it in float32, and have been sent it in bfloat16."""
    bias, matrix = torch.randn(8), torch.randn(4, 4)
    monkeypatch.setattr(trainer, "SMALL", 15)
    named = [("bias", bias), ("matrix", matrix), ("layers.0.experts.0.up_proj.weight", bias)]
    found = of_tensors(named, dtype=torch.bfloat16)
    assert [one.dtype for one in found["matrix"]] == ["float32", "bfloat16"]
    assert [one.dtype for one in found["bias"]] == ["float32", "bfloat16", "float32~bfloat16"]
    assert [one.dtype for one in found["layers.0.experts.0.up_proj.weight"]] == ["float32", "bfloat16"]
    assert found["matrix"][1].same(fingerprint(matrix.bfloat16()))
    assert found["bias"][2].hashes == fingerprint(bias.bfloat16().float()).hashes
    assert [one.dtype for one in of_tensors(named)["bias"]] == ["float32", "float32~bfloat16"]


def test_mambas_decay_is_told_as_engines_keep_it() -> None:
    decay = torch.rand(6)
    found = of_tensors([("layers.0.mixer.A_log", decay)])["layers.0.mixer.A"]
    assert found[0].same(fingerprint(-torch.exp(decay)))
    # Sent in bfloat16, it is rounded before it is made.
    assert found[1].hashes == fingerprint(-torch.exp(decay.bfloat16().float())).hashes


class Adapted(nn.Module):
    """A linear as PEFT wraps it."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(6, 5, bias=False)
        self.lora_A = nn.ModuleDict({"policy": nn.Linear(6, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"policy": nn.Linear(2, 5, bias=False)})
        self.scaling = {"policy": 2.0}
        self.r = {"policy": 2}
        self.active_adapters = ["policy"]
        self.merged_adapters: list[str] = []

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        first: Any = self.lora_A[adapter].weight
        second: Any = self.lora_B[adapter].weight
        delta: torch.Tensor = second @ first * self.scaling[adapter]
        return delta


def test_adapters_are_told_apart_from_their_base_or_merged_into_it() -> None:
    layer = Adapted()
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"q_proj": layer})])})
    name = "layers.0.q_proj.base_layer.weight"
    with torch.no_grad():
        assert fingerprints(model)[name][0].same(fingerprint(layer.base_layer.weight))
        merged = layer.base_layer.weight + layer.get_delta_weight("policy")
        found = fingerprints(model, merged=True)
        assert list(found) == [name]
        assert found[name][0].same(fingerprint(merged))
        (adapter,) = adapters(model, dtype=torch.bfloat16)
        assert (adapter.name, adapter.rank, adapter.targets) == ("policy", 2, ("q_proj",))
        second: Any = layer.lora_B["policy"].weight
        assert adapter.parts["layers.0.q_proj.lora_B"][0].same(fingerprint(second.bfloat16() * 2.0))
        assert adapter.norm > 0


def said_by_ranks(tmp_path: Path, count: int, *failing: int) -> list[dict[str, Any]]:
    log, module = tmp_path / "run.log", "tests.agent.ranks"
    main = (module, [str(tmp_path), *map(str, failing)], os.environ.copy())
    said_by(torchrun(shared(module, "torch._dynamo"), log, count, *main), log)
    return [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_shards_of_ranks_add_up_without_being_gathered(tmp_path: Path, count: int) -> None:
    alone = json.loads(json.dumps(ranks.spelled(fingerprints(ranks.model(), dtype=torch.bfloat16))))
    rows = sum(map(len, alone.values()))
    for said in said_by_ranks(tmp_path, count):
        assert said["sums"] == alone
        # Sums and how the ranks agree on them: 32 bytes a fingerprint, whatever the weights' size.
        assert said["collectives"] == ["c10d::allreduce_"]
        assert said["bytes"] == 24 + 32 * rows


@pytest.mark.slow
def test_a_rank_that_fails_leaves_no_other_waiting(tmp_path: Path) -> None:
    first, second = said_by_ranks(tmp_path, 2, 1)
    assert "another rank could not make the fingerprints" in first["error"]
    assert second["error"] == "no room for a piece"


def test_a_sum_of_parts_is_the_whole() -> None:
    value = torch.randn(7, 9)
    assert total(fingerprint(row) for row in value).same(fingerprint(value))
