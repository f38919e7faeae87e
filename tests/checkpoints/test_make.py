"""Making checkpoints: the same bytes for the same seed, nothing overwritten unasked."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from omni_rl.checkpoints.build import random_checkpoint
from omni_rl.checkpoints.make import make_checkpoint
from omni_rl.checkpoints.tokenizer import build_tokenizer
from omni_rl.checkpoints.training import Plan
from omni_rl.errors import CheckpointError, ConfigError
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration

SHORT = Plan(first_steps=1, digit_steps=1, accepted=(0.0, 1.0))


def _files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    lines: list[str] = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        make_checkpoint(tmp_path / name, seed=seed, force=False, progress=lines.append, plan=SHORT)

    assert _files(tmp_path / "a") == _files(tmp_path / "b")
    assert _files(tmp_path / "a")["model.safetensors"] != _files(tmp_path / "c")["model.safetensors"]
    assert any("digit step 1" in line for line in lines)


def test_training_reaches_every_part(tmp_path: Path) -> None:
    start = load_file(random_checkpoint(tmp_path / "random", seed=0) / "model.safetensors")
    make_checkpoint(tmp_path / "made", seed=0, force=False, progress=lambda line: None, plan=SHORT)
    trained = load_file(tmp_path / "made" / "model.safetensors")

    assert start.keys() == trained.keys()
    moved = {name for name, tensor in start.items() if not torch.equal(tensor, trained[name])}
    parts = (
        *(f"language_model.backbone.layers.{layer}.mixer." for layer in range(7)),
        "language_model.backbone.embeddings.",
        "language_model.lm_head.",
        "vision_model.radio_model.model.patch_generator.embedder.",
        "vision_model.radio_model.model.patch_generator.video_embedder.",
        "vision_model.radio_model.model.blocks.1.",
        "mlp1.1.",
        "sound_encoder.encoder.subsampling.",
        "sound_encoder.encoder.layers.1.",
        "sound_projection.linear1.",
    )
    assert [part for part in parts if not any(name.startswith(part) for name in moved)] == []
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert [name for name in moved if name.endswith(statistics)] == []


def test_a_directory_with_files_needs_force(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(ConfigError, match="--force"):
        make_checkpoint(tmp_path, seed=0, force=False, progress=lambda line: None, plan=SHORT)
    assert _files(tmp_path) == {"notes.txt": b"mine"}

    make_checkpoint(tmp_path, seed=0, force=True, progress=lambda line: None, plan=SHORT)
    assert _files(tmp_path)["notes.txt"] == b"mine"
    assert (tmp_path / "model.safetensors").exists()


def test_an_accuracy_out_of_range_writes_nothing(tmp_path: Path) -> None:
    plan = Plan(first_steps=1, digit_steps=1, accepted=(0.4, 0.55))

    with pytest.raises(CheckpointError, match=r"seed 0 .* outside 0.4 to 0.55"):
        make_checkpoint(tmp_path / "out", seed=0, force=False, progress=lambda line: None, plan=plan)

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("pattern", "dtype"), [("M", "float32"), ("*", "bfloat16"), ("EM-*E", "float32")])
def test_a_random_checkpoint_of_any_pattern_loads(tmp_path: Path, pattern: str, dtype: str) -> None:
    random_checkpoint(tmp_path, seed=1, pattern=pattern, dtype=dtype)

    model = NemotronOmniForConditionalGeneration.from_pretrained(tmp_path)

    assert model.config.llm_config.hybrid_override_pattern == pattern
    assert model.language_model.lm_head.weight.dtype == getattr(torch, dtype)


def test_the_tokenizer_is_the_committed_one(small_checkpoint: Path, tmp_path: Path) -> None:
    build_tokenizer().save_pretrained(tmp_path)

    assert (tmp_path / "tokenizer.json").read_bytes() == (small_checkpoint / "tokenizer.json").read_bytes()
