"""Two context-parallel ranks against one: logits, and the gradients of all weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from omni_rl.errors import ConfigError
from omni_rl.models.nemotron_omni.context_parallel import Context
from omni_rl.models.nemotron_omni.language.layout import PackedLayout
from omni_rl.models.nemotron_omni.language.model import NemotronHForCausalLM
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from tests.nursery import run_ranks

BATCH, LENGTH = 2, 24


def _prompt() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(40, 300, (BATCH, LENGTH), generator=generator)
    ids[:, 5:9] = 18
    return {"input_ids": ids, "pixel_values": torch.randn(BATCH, 3, 64, 64, generator=generator)}


def _weighted(logits: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """A loss in which every logit of `whole`'s shape has a weight of its own."""
    weights = torch.randn(whole.shape, generator=torch.Generator().manual_seed(1))
    return (logits * weights).sum()


def _gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _rank(rank: int, checkpoint: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=rank, world_size=2)
    model = NemotronOmniForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    prepared = model.prepare_model_inputs_for_cp(**_prompt())["inputs_embeds"].detach()
    context = Context(dist.group.WORLD, rank, 2, BATCH, LENGTH)  # type: ignore[arg-type]
    layout = PackedLayout.sharded(context, prepared.device)
    local = context.shard(prepared).flatten(0, 1).requires_grad_()
    logits = model.language_model(local, layout)
    whole = context.gather(logits)
    weights = torch.randn(whole.shape, generator=torch.Generator().manual_seed(1))
    torch.autograd.backward((logits * context.scatter(weights)).sum())
    gradients = _gradients(model.language_model)
    for gradient in gradients.values():
        dist.all_reduce(gradient)
    torch.save({"logits": whole.detach(), "gradients": gradients, "inputs": local.grad}, f"{out}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_equal_one(saved: Path, tmp_path: Path) -> None:
    run_ranks(tmp_path / "log", 2, _rank, str(saved), str(tmp_path))
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    model = NemotronOmniForConditionalGeneration.from_pretrained(saved, dtype=torch.float32)
    embeds = model.prepare_inputs_embeds_for_cp(**_prompt()).detach().requires_grad_()
    logits = model(inputs_embeds=embeds).logits.flatten(0, 1)
    torch.autograd.backward(_weighted(logits, logits))
    expected = _gradients(model.language_model)
    assert embeds.grad is not None
    for rank, found in enumerate(ranks):
        torch.testing.assert_close(found["logits"], logits.detach(), rtol=1e-4, atol=1e-4)
        local = Context(None, rank, 2, BATCH, LENGTH).shard(embeds.grad).flatten(0, 1)  # type: ignore[arg-type]
        assert (found["inputs"] - local).norm() / local.norm() < 1e-4
        assert found["gradients"].keys() == expected.keys()
        for name, gradient in expected.items():
            assert (found["gradients"][name] - gradient).norm() / (gradient.norm() + 1e-4) < 1e-4, name


def test_shards_are_the_first_and_last_chunks_and_sequences_must_divide() -> None:
    tokens = torch.arange(16).view(2, 8)
    shards = [Context(None, rank, 2, 2, 8).shard(tokens)[0].tolist() for rank in range(2)]  # type: ignore[arg-type]
    assert shards == [[0, 1, 6, 7], [2, 3, 4, 5]]
    with pytest.raises(ConfigError, match="10 tokens cannot be cut in 4"):
        PackedLayout.sharded(Context(None, 0, 2, 1, 10), torch.device("cpu"))  # type: ignore[arg-type]


def test_heads_that_do_not_divide_are_refused_by_count(omni: NemotronOmniForConditionalGeneration) -> None:
    language_model: NemotronHForCausalLM = omni.language_model
    layout = PackedLayout.sharded(Context(None, 0, 3, 1, 6), torch.device("cpu"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="2 Mamba groups cannot be shared by 3"):
        language_model(torch.zeros(2, 64), layout)
