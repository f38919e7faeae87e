"""What one process with the whole model does: the measure of a group's ranks."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.rollout.types import Rollout
from omni_rl.train import checkpoint
from omni_rl.train.group import TrainerGroup
from omni_rl.train.settings import PLAIN, TrainSettings
from omni_rl.train.step import build_optimizer, train_step
from omni_rl.train.targets import targets_of


def whole_model(directory: Path) -> NemotronOmniForConditionalGeneration:
    torch.set_num_threads(1)
    return NemotronOmniForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)


def assert_same_step(
    group: TrainerGroup,
    settings: TrainSettings,
    rollouts: list[Rollout],
    advantages: list[float],
    initial: Path,
    saved: Path,
) -> None:
    """The group's step and gradient are those of one process that holds the whole model of `initial`."""
    before = group.version()
    stats = group.update(rollouts, advantages)
    after = group.version()
    assert (after.number, before.number) == (1, 0)
    assert after.digest != before.digest
    group.save(saved)
    sharded = load_file(saved / checkpoint.OPTIMIZER)

    model = whole_model(initial)
    optimizer = build_optimizer(model, settings)
    alone = settings.model_copy(update={"world_size": 1})
    tokens = sum(len(rollout.ids) for rollout in rollouts)
    targets = [targets_of(rollouts, advantages)]
    whole = train_step(model, optimizer, [rollouts], targets, objective=PLAIN, settings=alone)
    assert stats.tokens == tokens
    assert stats.loss == pytest.approx(whole.loss, abs=1e-5)
    assert stats.grad_norm == pytest.approx(whole.grad_norm, rel=1e-5)
    # The first moment is (1 - beta1) times the clipped gradient.
    state = [stored.released for stored in checkpoint.optimizer_tensors(model, optimizer)]
    expected = {moment.name: moment.tensor for moment in state if moment.name.startswith("exp_avg/")}
    assert len(expected) > 50
    for name, moment in expected.items():
        assert torch.allclose(sharded[name], moment, atol=1e-7, rtol=1e-4), name
    assert {name for name in sharded if name.startswith("exp_avg/")} == expected.keys()
