"""Making checkpoints: the same bytes for the same seed, nothing overwritten unasked."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from omni_rl.checkpoints.build import random_checkpoint
from omni_rl.checkpoints.make import make_checkpoint
from omni_rl.checkpoints.tokenizer import build_tokenizer
from omni_rl.checkpoints.training import TrainingPlan
from omni_rl.errors import CheckpointError, ConfigError
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration

SHORT = TrainingPlan(first_steps=1, digit_steps=1, accepted=(0.0, 1.0))


def _files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seed 3, hardly trained."""
    directory = tmp_path_factory.mktemp("made") / "out"
    lines: list[str] = []
    make_checkpoint(directory, seed=3, force=False, progress=lines.append, plan=SHORT)
    assert any("digit step 1" in line for line in lines)
    return directory


@pytest.mark.slow
def test_a_directory_with_files_needs_force_and_the_same_seed_gives_the_same_bytes(made: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(ConfigError, match="--force"):
        make_checkpoint(tmp_path, seed=3, force=False, progress=lambda line: None, plan=SHORT)
    assert _files(tmp_path) == {"notes.txt": b"mine"}

    # What an older checkpoint left, and a reader would prefer.
    (tmp_path / "old-1.safetensors").write_text("older weights")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"mlp1.0.weight": "old-1.safetensors"}}')
    make_checkpoint(tmp_path, seed=3, force=True, progress=lambda line: None, plan=SHORT)
    assert _files(tmp_path) == _files(made) | {"notes.txt": b"mine"}


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    one, other = (load_file(random_checkpoint(tmp_path / str(seed), seed) / "model.safetensors") for seed in (1, 2))

    same = {name for name in one if torch.equal(one[name], other[name])}
    assert all(name.endswith("num_batches_tracked") for name in same), sorted(same)


def test_training_reaches_every_part(made: Path, tmp_path: Path) -> None:
    start = load_file(random_checkpoint(tmp_path, seed=3) / "model.safetensors")
    trained = load_file(made / "model.safetensors")

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


def test_an_accuracy_out_of_range_writes_nothing(tmp_path: Path) -> None:
    plan = TrainingPlan(first_steps=0, digit_steps=0)

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
