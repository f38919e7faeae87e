"""A checkpoint is there whole or not at all, and training goes on from it as if it had never stopped."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from omni_rl.config import SMALL_CHECKPOINT
from omni_rl.errors import CheckpointError
from omni_rl.files.companions import Companions
from omni_rl.files.weights import WEIGHTS
from omni_rl.models.nemotron_omni.checkpoint import write_beside
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.storage import Stored
from omni_rl.rollout.types import Rollout
from omni_rl.train import checkpoint
from omni_rl.train.settings import PLAIN, TrainSettings
from omni_rl.train.step import build_optimizer, train_step
from omni_rl.train.targets import targets_of
from omni_rl.train.value import ValueHead

from .bigram import Bigram
from .conftest import MakeRollout

SETTINGS = TrainSettings(world_size=1, learning_rate=1e-2, weight_decay=0.1)


@pytest.fixture
def config(small_checkpoint: Path) -> NemotronOmniConfig:
    loaded: NemotronOmniConfig = NemotronOmniConfig.from_pretrained(small_checkpoint)
    return loaded


def _write(target: Path, config: NemotronOmniConfig, policy: Bigram, optimizer: torch.optim.Optimizer) -> None:
    checkpoint.write(
        target,
        lambda directory, dtype: write_beside(directory, config, Companions.read(SMALL_CHECKPOINT), dtype),
        Stored.whole({name: tensor.detach() for name, tensor in policy.named_parameters()}),
        checkpoint.optimizer_tensors(policy, optimizer),
        ValueHead(8, SETTINGS).tensors(),
        run="run",
        attempt=1,
        number=3,
        dtype="float32",
    )


def _step(policy: Bigram, optimizer: torch.optim.Optimizer, rollout: Rollout) -> None:
    targets = [targets_of([rollout], [1.0])]
    train_step(policy, optimizer, [[rollout]], targets, objective=PLAIN, settings=SETTINGS)


def test_resumed_training_is_bitwise_the_uninterrupted_one(
    make_rollout: MakeRollout, config: NemotronOmniConfig, tmp_path: Path
) -> None:
    policy = Bigram()
    optimizer = build_optimizer(policy, SETTINGS)
    _step(policy, optimizer, make_rollout(0))
    _write(tmp_path / "saved", config, policy, optimizer)
    _step(policy, optimizer, make_rollout(1))

    resumed = Bigram()
    resumed.load_state_dict(load_file(tmp_path / "saved" / "model.safetensors"))
    optimizer = build_optimizer(resumed, SETTINGS)
    checkpoint.load_optimizer(resumed, optimizer, tmp_path / "saved")
    _step(resumed, optimizer, make_rollout(1))
    for name, parameter in policy.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name))


def test_a_checkpoint_has_what_an_engine_serves_in_the_dtype_of_training(
    config: NemotronOmniConfig, tmp_path: Path
) -> None:
    policy = Bigram()
    _write(tmp_path / "saved", config, policy, build_optimizer(policy, SETTINGS))
    saved = tmp_path / "saved"
    served = {path.name for path in saved.iterdir() if path.is_file()}
    assert {"config.json", "tokenizer.json"} <= served
    # An engine takes every safetensors file it finds for weights.
    assert [name for name in served if name.endswith(".safetensors")] == ["model.safetensors"]
    written = json.loads((saved / "config.json").read_text())
    assert config.dtype == torch.bfloat16
    assert written["dtype"] == written["llm_config"]["dtype"] == "float32"
    record = checkpoint.read_record(saved)
    assert (record.run, record.attempt, record.number) == ("run", 1, 3)


def test_a_checkpoint_is_never_overwritten(config: NemotronOmniConfig, tmp_path: Path) -> None:
    policy = Bigram()
    _write(tmp_path / "saved", config, policy, build_optimizer(policy, SETTINGS))
    before = (tmp_path / "saved" / "training" / "step.json").read_bytes()
    with pytest.raises(CheckpointError, match="never overwritten"):
        _write(tmp_path / "saved", config, policy, build_optimizer(policy, SETTINGS))
    assert (tmp_path / "saved" / "training" / "step.json").read_bytes() == before
    with pytest.raises(CheckpointError, match="no training checkpoint"):
        checkpoint.read_record(tmp_path / "elsewhere")


@pytest.mark.parametrize("file", [WEIGHTS, checkpoint.OPTIMIZER])
def test_changed_tensors_are_noticed(
    make_rollout: MakeRollout, config: NemotronOmniConfig, tmp_path: Path, file: str
) -> None:
    policy = Bigram()
    optimizer = build_optimizer(policy, SETTINGS)
    _step(policy, optimizer, make_rollout(0))
    _write(tmp_path / "saved", config, policy, optimizer)
    path = tmp_path / "saved" / file
    tensors = load_file(path)
    next(tensor for tensor in tensors.values() if tensor.ndim == 2)[0, 0] += 1
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=f"{file} does not hold the tensors"):
        checkpoint.read_record(tmp_path / "saved")


def test_a_truncated_file_is_no_checkpoint(config: NemotronOmniConfig, tmp_path: Path) -> None:
    policy = Bigram()
    _write(tmp_path / "saved", config, policy, build_optimizer(policy, SETTINGS))
    path = tmp_path / "saved" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="no training checkpoint"):
        checkpoint.read_record(tmp_path / "saved")


def test_optimizer_state_of_another_model_is_refused(
    make_rollout: MakeRollout, config: NemotronOmniConfig, tmp_path: Path
) -> None:
    policy = Bigram()
    optimizer = build_optimizer(policy, SETTINGS)
    _step(policy, optimizer, make_rollout(0))
    _write(tmp_path / "saved", config, policy, optimizer)
    other = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match="exp_avg/head"):
        checkpoint.load_optimizer(other, build_optimizer(other, SETTINGS), tmp_path / "saved")
