"""The pinned checkpoints: weights that repeat, so that they pack to a few kilobytes, and a real step of AdamW."""

import json
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3

from omni_rl.api.jobs import GrpoParameters
from omni_rl.checkpoints.shape import small_config
from omni_rl.checkpoints.tokenizer import save_tokenizer
from omni_rl.jobs.saved import SavedSteps
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.models.nemotron_omni.shards import stored_tensors
from omni_rl.train import checkpoint
from omni_rl.train.settings import TrainSettings
from omni_rl.train.step import build_optimizer
from omni_rl.train.value import ValueHead

PATTERN = "M*E"
SETTINGS = TrainSettings(world_size=1)
PARAMETERS = GrpoParameters(run="digits", steps=20, save_every=5, learning_rate=0.002, seed=3)
PERIOD = 97
"""A prime: every row of a matrix is another."""


def digest(tensor: torch.Tensor) -> str:
    """blake3 of a tensor's bytes, whatever its dtype; a digest of this test's own."""
    return blake3(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def described(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Dtype, shape and digest of each."""
    return {
        name: {"dtype": str(tensor.dtype), "shape": list(tensor.shape), "blake3": digest(tensor)}
        for name, tensor in sorted(tensors.items())
    }


def in_one(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Names, and one digest of what `described` says of all."""
    text = json.dumps(described(tensors), sort_keys=True)
    return {"tensors": len(tensors), "blake3": blake3(text.encode()).hexdigest()}


def write_weights(directory: Path) -> None:
    """A model directory in released names, bfloat16, as `save_pretrained` writes it; with the small tokenizer."""
    source = directory.with_name("source")
    model = repeating(small_config(PATTERN, "bfloat16"))
    source.mkdir()
    save_tokenizer(source)
    model.config.name_or_path = str(source)
    model.save_pretrained(directory, torch.bfloat16)


def write_saved_run(runs: Path) -> None:
    """What a job leaves in `runs`: its parameters, and the states with which steps 5 and 10 begin."""
    saved = SavedSteps("digits", runs)
    saved.begin("grpo", PARAMETERS)
    model = repeating(small_config(PATTERN, "float32"))
    optimizer = build_optimizer(model, SETTINGS)
    head = ValueHead(model.config.llm_config.hidden_size, SETTINGS)
    for following in (5, 10):
        for parameter in (*model.parameters(), *head.parameters()):
            parameter.grad = _pattern(parameter.numel(), 1 / 1024).reshape(parameter.shape)
        optimizer.step()
        head.step()
        checkpoint.write(
            saved.path(following),
            model.write_beside,
            stored_tensors(model, torch.float32),
            checkpoint.optimizer_tensors(model, optimizer),
            head.tensors(),
            run="digits",
            attempt=1,
            number=following,
            dtype="float32",
        )


def repeating(config: NemotronOmniConfig) -> NemotronOmniForConditionalGeneration:
    """The model with values that are whole in bfloat16 too."""
    model = NemotronOmniForConditionalGeneration(config)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(_pattern(tensor.numel(), 1 / 64).reshape(tensor.shape).abs() + 1 / 64)
    return model


def digests_of(weights: Path, runs: Path) -> dict[str, Any]:
    """Every tensor that the files hold, read with safetensors alone, and the documents beside them."""
    from safetensors.torch import load_file

    found: dict[str, Any] = {"weights": described(load_file(weights / "model.safetensors"))}
    for following in (5, 10):
        state = runs / "digits" / f"step-{following:08d}"
        files = ("model.safetensors", "training/optimizer.safetensors", "training/value_head.safetensors")
        found[state.name] = {name: in_one(load_file(state / name)) for name in files}
        found[state.name]["training/step.json"] = json.loads((state / "training" / "step.json").read_text())
    return found


def _pattern(count: int, unit: float) -> torch.Tensor:
    return (torch.arange(count) % PERIOD - PERIOD // 2) * unit
