"""Checkpoints and saved runs of version 0.1.0 hold the tensors that they held, and training goes on from them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from omni_rl.errors import CheckpointError, ConfigError
from omni_rl.jobs.saved import SavedSteps
from omni_rl.models.nemotron_omni.checkpoint import released_state
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.train import checkpoint
from omni_rl.train.group import TrainerGroup
from omni_rl.train.settings import TrainSettings
from omni_rl.train.step import build_optimizer
from omni_rl.train.value import ValueHead
from tests.pinned.checkpoint_content import PARAMETERS, SETTINGS, described, in_one
from tests.pinned.kept_meaning import lost
from tests.pinned.pinned_files import pinned_json, unpacked
from tests.released import read_released

FILES = {"weights": "model.safetensors", "optimizer": "training/optimizer.safetensors"}


@pytest.fixture(scope="module")
def tensors() -> dict[str, Any]:
    """What the files held when they were written."""
    found: dict[str, Any] = pinned_json("tensors.json")
    return found


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory; read only."""
    return unpacked("weights.zip", tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of all runs, with one that two states were saved of; read only."""
    return unpacked("saved_run.zip", tmp_path_factory.mktemp("runs"))


def test_a_model_directory_loads_bit_for_bit(weights: Path, tensors: dict[str, Any]) -> None:
    assert lost(tensors["weights"], described(dict(read_released(weights)))) == []
    model = NemotronOmniForConditionalGeneration.from_pretrained(weights)
    assert lost(tensors["weights"], described(dict(released_state(model, torch.bfloat16)))) == []


def test_a_model_directory_is_written_with_the_same_tensors_again(
    weights: Path, tensors: dict[str, Any], tmp_path: Path
) -> None:
    NemotronOmniForConditionalGeneration.from_pretrained(weights).save_pretrained(tmp_path / "again")
    again = dict(read_released(tmp_path / "again"))
    assert lost(tensors["weights"], described(again)) == []
    names = {path.name for path in weights.iterdir()}
    assert names <= {path.name for path in (tmp_path / "again").iterdir()}


def test_a_job_finds_its_latest_state_and_its_parameters(runs: Path) -> None:
    saved = SavedSteps("digits", runs)
    more = PARAMETERS.model_copy(update={"steps": 40, "resume": True})
    assert saved.resume("grpo", more) == (10, runs / "digits" / "step-00000010")
    with pytest.raises(ConfigError, match=r"began with learning_rate 0\.002 \(now 0\.1\)"):
        saved.resume("grpo", more.model_copy(update={"learning_rate": 0.1}))
    with pytest.raises(ConfigError, match="began with kind 'grpo'"):
        saved.resume("ppo", more)


@pytest.mark.parametrize("following", [5, 10])
def test_a_saved_state_is_the_one_that_was_saved(runs: Path, tensors: dict[str, Any], following: int) -> None:
    directory = runs / "digits" / f"step-{following:08d}"
    then = tensors[directory.name]
    record = checkpoint.read_record(directory)
    assert (record.run, record.attempt, record.number, record.dtype) == ("digits", 1, following, "float32")
    assert lost(then["training/step.json"], record.model_dump(mode="json")) == []

    model = NemotronOmniForConditionalGeneration.from_pretrained(directory)
    assert in_one(dict(released_state(model, torch.float32))) == then["model.safetensors"]
    optimizer = build_optimizer(model, SETTINGS)
    checkpoint.load_optimizer(model, optimizer, directory)
    state = {s.released.name: s.released.tensor for s in checkpoint.optimizer_tensors(model, optimizer)}
    assert in_one(state) == then["training/optimizer.safetensors"]
    head = ValueHead(model.config.llm_config.hidden_size, SETTINGS)
    head.load(directory / "training" / "value_head.safetensors")
    assert in_one(head.tensors()) == then["training/value_head.safetensors"]


def test_a_changed_tensor_is_still_noticed(tmp_path: Path) -> None:
    """What proves a state is in the state: the digests that were written then."""
    directory = unpacked("saved_run.zip", tmp_path) / "digits" / "step-00000010"
    path = directory / "training" / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="does not hold the tensors that were saved"):
        checkpoint.read_record(directory)


@pytest.fixture
def trainer(weights: Path, local_ray: None) -> Iterator[TrainerGroup]:
    """Two ranks on the pinned weights."""
    with TrainerGroup.start(weights, TrainSettings(world_size=2), "digits", attempt=2) as group:
        yield group


@pytest.mark.slow
def test_a_trainer_starts_on_the_weights_and_goes_on_from_the_saved_state(
    trainer: TrainerGroup, runs: Path, tmp_path: Path
) -> None:
    trainer.load(runs / "digits" / "step-00000010")
    assert trainer.version().number == 10
    trainer.save(tmp_path / "again")
    then, now = (checkpoint.read_record(path) for path in (runs / "digits" / "step-00000010", tmp_path / "again"))
    assert lost(then.digests, now.digests) == []
