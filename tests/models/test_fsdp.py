"""Two gloo ranks with FSDP2 against one process without."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from omni_rl.errors import CheckpointError
from omni_rl.models.nemotron_omni.checkpoint import released_state
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.models.nemotron_omni.parallel import shard
from omni_rl.models.packed import PackedMedia, PackedSequences
from tests.nursery import run_ranks
from tests.released import read_released

pytestmark = pytest.mark.slow


def _batch(rank: int) -> PackedSequences:
    """Rank 0 has an image and a sound, rank 1 a video and more tokens: the towers in use differ."""
    generator = torch.Generator().manual_seed(rank)
    lengths = [[20, 31], [64, 5, 9]][rank]
    tensors: dict[str, tuple[dict[str, torch.Tensor], int]] = {
        "image": ({"pixel_values_flat": torch.randn(3, 32, 64, generator=generator)}, 2),
        "video": ({"pixel_values_flat_video": torch.randn(3, 3, 32, 64, generator=generator)}, 4),
        "audio": (
            {
                "input_audio_features": torch.randn(1, 40, 16, generator=generator),
                "feature_attention_mask": torch.ones(1, 40, dtype=torch.bool),
            },
            5,
        ),
    }
    media, start = [], 1
    for modality in (["image", "audio"], ["video"])[rank]:
        values, count = tensors[modality]
        media.append(PackedMedia(modality, torch.arange(start, start + count), values, "sample"))  # type: ignore[arg-type]
        start += count
    ids = torch.randint(40, 300, (sum(lengths),), generator=generator)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    mask = torch.ones(len(ids), dtype=torch.bool)
    mask[cu_seqlens[:-1].long()] = False
    return PackedSequences(ids, cu_seqlens, mask, tuple(media))


def _rank(rank: int, checkpoint: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for name in ("float32", "bfloat16"):
        dtype = getattr(torch, name)
        model = NemotronOmniForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
        shard(model, mesh, dtype)
        scores = model.score_packed(_batch(rank))
        torch.autograd.backward(scores.logprobs.sum())
        gradients = {key: _whole(parameter.grad) for key, parameter in model.named_parameters()}
        model.zero_grad()
        model.prepare_for_grad_accumulation()
        torch.autograd.backward(model.score_packed(_batch(rank)).logprobs.sum())
        reduced_early = [key for key, parameter in model.named_parameters() if parameter.grad is not None]
        model.prepare_for_final_backward()
        torch.autograd.backward(model.score_packed(_batch(rank)).logprobs.sum())
        accumulated = {key: _whole(parameter.grad) for key, parameter in model.named_parameters()}
        found: dict[str, Any] = {
            "logprobs": scores.logprobs.detach(),
            "experts": scores.experts,
            "gradients": gradients,
        }
        found |= {"accumulated": accumulated, "reduced_early": reduced_early}
        torch.save(found | {"released": dict(released_state(model, dtype))}, f"{out}/{name}.{rank}.pt")
        model.save_pretrained(f"{out}/saved-{name}", dtype=dtype)
        # Seen by every rank as soon as its own call returns, and an error of the first is everybody's.
        weights = [released for released, _ in read_released(Path(out, f"saved-{name}"))]
        try:
            model.save_pretrained(f"{out}/refused")
        except CheckpointError as error:
            Path(out, f"{name}.{rank}.refused").write_text(f"{len(weights)} {error}")
    dist.barrier()
    dist.destroy_process_group()


def _whole(tensor: torch.Tensor | None) -> torch.Tensor:
    assert isinstance(tensor, DTensor)
    return tensor.full_tensor()


@pytest.fixture(scope="module")
def ranks(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each of two ranks found, in both dtypes."""
    out = tmp_path_factory.mktemp("ranks")
    (out / "refused" / "training").mkdir(parents=True)
    (out / "refused" / "training" / "step.json").touch()
    run_ranks(out / "log", 2, _rank, str(saved), str(out))
    return out


def _alone(index: int, checkpoint: str, out: str) -> None:
    """One process without FSDP on what both ranks have. In a process as new as theirs: threads, and what an engine that
    ran before has set, change the order of sums."""
    torch.set_num_threads(1)
    for name in ("float32", "bfloat16"):
        dtype = getattr(torch, name)
        whole = NemotronOmniForConditionalGeneration.from_pretrained(checkpoint, dtype=dtype)
        scores = [whole.score_packed(_batch(rank)) for rank in range(2)]
        for scored in scores:
            torch.autograd.backward(scored.logprobs.sum())
        found = {
            "logprobs": [scored.logprobs.detach() for scored in scores],
            "experts": [scored.experts for scored in scores],
            "gradients": {key: parameter.grad for key, parameter in whole.named_parameters()},
            "released": dict(released_state(whole, dtype)),
        }
        torch.save(found, f"{out}/{name}.alone.pt")


@pytest.fixture(scope="module")
def alone(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process found, in both dtypes."""
    out = tmp_path_factory.mktemp("alone")
    run_ranks(out / "log", 1, _alone, str(saved), str(out))
    return out


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_two_ranks_with_different_media_equal_one_process(ranks: Path, alone: Path, name: str) -> None:
    first, second = (torch.load(ranks / f"{name}.{rank}.pt") for rank in range(2))
    whole = torch.load(alone / f"{name}.alone.pt")
    for rank, found in enumerate((first, second)):
        assert torch.equal(whole["logprobs"][rank], found["logprobs"])
        assert torch.equal(whole["experts"][rank], found["experts"])
    assert whole["gradients"].keys() == first["gradients"].keys()
    for key, gradient in whole["gradients"].items():
        mine, theirs = first["gradients"][key], gradient.float() / 2  # FSDP averages over ranks
        assert mine.dtype == torch.float32
        scale = theirs.norm() + 1e-6 * theirs.numel() ** 0.5
        assert (mine - theirs).norm() / scale < (1e-5 if name == "float32" else 0.02), key
    for key, tensor in whole["released"].items():
        for found in (first, second):
            assert torch.equal(tensor, found["released"][key]), key


def test_accumulation_reduces_once_and_sums_the_steps(ranks: Path) -> None:
    found = torch.load(ranks / "float32.0.pt")
    assert found["reduced_early"] == []
    for key, gradient in found["gradients"].items():
        torch.testing.assert_close(found["accumulated"][key], 2 * gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_ranks_that_save_together_write_the_whole_model_once(ranks: Path, name: str) -> None:
    expected = torch.load(ranks / f"{name}.0.pt")["released"]
    written = dict(read_released(ranks / f"saved-{name}"))
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[key], tensor) for key, tensor in expected.items())
    assert [path.name for path in ranks.iterdir() if path.name.startswith(".saved")] == []
    for rank in range(2):
        told = (ranks / f"{name}.{rank}.refused").read_text()
        assert told.startswith(f"{len(expected)} ")
        assert "is a training checkpoint" in told
