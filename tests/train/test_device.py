"""A rank's device: which it is, and that everything a policy is given is there. No CUDA device was at hand."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from omni_rl.errors import ConfigError
from omni_rl.models.packed import PackedMedia, PackedPruning, PackedScores, PackedSequences
from omni_rl.settings import Numerics
from omni_rl.train.device import BACKENDS, own_device
from omni_rl.train.moments import beside
from omni_rl.train.settings import PLAIN, Objective, TrainSettings
from omni_rl.train.step import build_optimizer, pack_loss, train_step
from omni_rl.train.targets import Targets, targets_of
from omni_rl.train.value import ValueHead

from .conftest import MakeRollout

NOWHERE = torch.device("meta")


def test_the_cpu_is_the_default_and_needs_nothing() -> None:
    settings = TrainSettings()
    assert own_device(settings.device) == torch.device("cpu")
    assert BACKENDS[settings.device] == "gloo"
    assert settings.set_aside == {}


def test_a_rank_on_a_device_asks_ray_for_one() -> None:
    settings = TrainSettings(device="cuda", resources={"trainer": 0.1})
    assert settings.set_aside == {"trainer": 0.1, "GPU": 1.0}
    assert BACKENDS[settings.device] == "cpu:gloo,cuda:nccl"


def test_cuda_that_is_not_there_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ConfigError, match="built without CUDA"):
        own_device("cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(ConfigError, match="sees none"):
        own_device("cuda")


@pytest.fixture
def tf32() -> Iterator[None]:
    """Float32 products may be rounded; afterwards as before."""
    was = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = was


@pytest.mark.usefixtures("tf32")
def test_a_rank_takes_the_device_that_it_was_shown_and_keeps_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert own_device("cuda") == torch.device("cuda", 0)
    assert current == [torch.device("cuda", 0)]
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("numerics", ["matched", "batch_invariant"])
def test_numerics_of_the_cpu_are_refused_on_a_device(numerics: Numerics) -> None:
    with pytest.raises(ConfigError, match=f"{numerics}.*CPU operators"):
        TrainSettings(device="cuda", dtype="bfloat16", numerics=numerics)


def tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from tensors(each)
    elif isinstance(value, tuple):
        for each in value:
            yield from tensors(each)
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors(getattr(value, field.name))


def test_all_of_a_pack_goes_along() -> None:
    pruning = PackedPruning(0.5, (1, 4), torch.zeros(2, dtype=torch.int64), torch.ones(2, 2, dtype=torch.bool))
    video = PackedMedia(
        "video", torch.tensor([2, 3]), {"pixel_values_flat_video": torch.ones(2, 3, 4, 4)}, "v", pruning
    )
    mask = torch.zeros(6, dtype=torch.bool)
    batch = PackedSequences(torch.arange(6), torch.tensor([0, 6]), mask, (video,), torch.zeros(6, 1, 2))
    there = batch.to(NOWHERE)
    assert [tensor.shape for tensor in tensors(there)] == [tensor.shape for tensor in tensors(batch)]
    assert all(tensor.is_meta for tensor in tensors(there))
    assert len(list(tensors(batch))) == 8
    assert batch.to(torch.device("cpu")).ids is batch.ids


class Elsewhere(nn.Module):
    """A policy that was told it is nowhere; its scores are on the host, where the test can see them."""

    def __init__(self, scored: int) -> None:
        super().__init__()
        self.logprobs = nn.Parameter(torch.zeros(scored))
        self.given: list[torch.Tensor] = []

    def score_packed(
        self, batch: PackedSequences, *, temperature: float | torch.Tensor, logprob_chunk: int, record_routing: bool
    ) -> PackedScores:
        self.given += [*tensors(batch), *tensors(temperature)]
        return PackedScores(self.logprobs, None, None)


def test_a_step_gives_the_policy_what_it_needs_on_its_device(make_rollout: MakeRollout) -> None:
    rollouts = [make_rollout(0, answer=3, media=[("image", (32, 32))])]
    policy, settings = Elsewhere(3), TrainSettings()
    optimizer = build_optimizer(policy, settings)
    targets = [targets_of(rollouts, [1.0])]
    stats = train_step(policy, optimizer, [rollouts], targets, objective=PLAIN, settings=settings, device=NOWHERE)
    assert len(policy.given) == 6
    assert all(tensor.is_meta for tensor in policy.given)
    assert stats.tokens == 3
    assert policy.logprobs.detach().min() > 0


def test_targets_and_values_follow_the_scores() -> None:
    """The loss, where a tensor that is made without saying where would be on no device at all."""
    rng = np.random.default_rng(0)
    shape = Targets(*(rng.random(4) for _ in range(7)))
    head = ValueHead(8, TrainSettings())
    hidden = torch.ones(4, 8)
    scores = PackedScores(torch.zeros(4, requires_grad=True), None, None, hidden=hidden)
    objective = Objective(kl=0.1, value_weight=0.5)
    expected, _ = pack_loss(scores, [shape], objective, head)
    with NOWHERE:
        loss, _ = pack_loss(scores, [shape], objective, head)
        empty = PackedScores(scores.logprobs[:1], None, None, hidden=hidden[:1])
        nothing, _ = pack_loss(empty, [], objective, head)
    assert torch.equal(loss, expected)
    assert nothing.device == loss.device == torch.device("cpu")


def test_moments_are_beside_their_parameter_and_the_count_on_the_host() -> None:
    parameter = nn.Parameter(torch.zeros(2, device=NOWHERE))
    assert beside(parameter, "exp_avg", torch.ones(2)).is_meta
    assert not beside(parameter, "step", torch.tensor(3.0)).is_meta
    assert ValueHead(8, TrainSettings(), NOWHERE).linear.weight.is_meta
