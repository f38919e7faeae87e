"""Two ranks that hold one sharded Omni do what one process with the whole model does."""

import os
import shutil
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from omni_rl.errors import (
    CheckpointError,
    ConfigError,
    GradientError,
    SlabBusyError,
    SlabError,
    SlabFullError,
    TrainerDeadError,
)
from omni_rl.kinds import KINDS
from omni_rl.rollout.types import Rollout
from omni_rl.sync.digest import weights_digest
from omni_rl.sync.slab import Slab
from omni_rl.train import checkpoint
from omni_rl.train.group import TrainerGroup
from omni_rl.train.packing import pack
from omni_rl.train.settings import TrainSettings
from tests.released import all_as_sent

from .conftest import MakeRollout
from .one_process import assert_same_step, whole_model

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

SLAB_BYTES = 2**23
SETTINGS = TrainSettings(world_size=2, learning_rate=1e-3, max_pack_tokens=64, collective_timeout=60.0)
ADVANTAGES = [1.0, -0.5, 0.25, -1.0, 2.0]


@pytest.fixture
def rollouts(make_rollout: MakeRollout) -> list[Rollout]:
    """The images stand in one rollout, so that one rank has pictures and the other none."""
    return [
        make_rollout(0, prompt=5, answer=7),
        make_rollout(1, prompt=9, answer=3, media=[("image", (64, 96)), ("image", (32, 64))]),
        make_rollout(2, prompt=20, answer=30),
        make_rollout(3, prompt=2, answer=1),
        make_rollout(4, prompt=11, answer=16, temperature=0.7),
    ]


@pytest.fixture(scope="module")
def shared(
    local_ray: None, small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[TrainerGroup, Path]]:
    """A group, and the state that it started with."""
    initial = tmp_path_factory.mktemp("trainer") / "initial"
    with TrainerGroup.start(small_checkpoint, SETTINGS, run="test") as started:
        started.save(initial)
        yield started, initial


@pytest.fixture
def group(shared: tuple[TrainerGroup, Path]) -> TrainerGroup:
    """A group that has learnt nothing yet."""
    started, initial = shared
    started.load(initial)
    return started


@pytest.fixture(scope="module")
def second(local_ray: None, small_checkpoint: Path) -> Iterator[TrainerGroup]:
    """Another group of the same settings, with the checkpoint's weights."""
    with TrainerGroup.start(small_checkpoint, SETTINGS, run="test") as started:
        yield started


@pytest.fixture(scope="module")
def coarse(local_ray: None, small_checkpoint: Path) -> Iterator[TrainerGroup]:
    """A group in bfloat16."""
    settings = SETTINGS.model_copy(update={"dtype": "bfloat16"})
    with TrainerGroup.start(small_checkpoint, settings, run="test") as started:
        yield started


def _weights(group: TrainerGroup, directory: Path) -> dict[str, torch.Tensor]:
    """What an engine would get now."""
    slab = Slab.create(directory / f"{uuid.uuid4().hex}.weights", SLAB_BYTES)
    assert group.fill(slab.path).version == group.version()
    return slab.tensors()


def _own_mib(pid: int) -> float:
    (line,) = (row for row in Path(f"/proc/{pid}/status").read_text().splitlines() if row.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def test_job_after_job_takes_no_more_memory(group: TrainerGroup) -> None:
    """Each begins with a fresh model and optimiser; without care, a few were a tenth of a rank."""

    def after(jobs: int) -> list[float]:
        for job in range(jobs):
            group.reset()
            group.take_snapshot(f"job {job}")
            group.drop_snapshot()
        return [_own_mib(pid) for pid in group.pids]

    few, many = after(5), after(25)
    assert max(more - less for more, less in zip(many, few, strict=True)) < 16


def test_scores_are_those_of_the_whole_model_alone(
    group: TrainerGroup, rollouts: list[Rollout], small_checkpoint: Path
) -> None:
    model = whole_model(small_checkpoint)
    scores = group.score(rollouts)
    assert len(scores) == len(rollouts)
    for rollout, score in zip(rollouts, scores, strict=True):
        with torch.no_grad():
            alone = model.score_packed(pack([rollout]), temperature=rollout.temperature)
        assert np.abs(score.logprobs - alone.logprobs.double().numpy()).max() < 1e-5
        assert alone.experts is not None
        assert alone.margins is not None
        assert score.experts is not None
        assert score.margins is not None
        safe = alone.margins[:-1].numpy() > 1e-5
        assert safe.mean() > 0.99
        assert (score.experts == alone.experts[:-1].numpy())[safe].all()
        assert np.abs(score.margins - alone.margins[:-1].numpy()).max() < 1e-5
        assert score.digests == tuple(item.digests for item in rollout.prompt.items)
        assert score.version == str(group.version())


def test_fewer_rollouts_than_ranks(group: TrainerGroup, rollouts: list[Rollout]) -> None:
    together = group.score(rollouts)
    for index in (0, 1):
        (alone,) = group.score([rollouts[index]])
        assert np.abs(alone.logprobs - together[index].logprobs).max() < 1e-5
    assert group.score([]) == []
    assert group.update([rollouts[1]], [1.0]).tokens == 3


def test_the_version_is_the_digest_that_an_engine_computes_for_the_same_checkpoint(
    group: TrainerGroup, small_checkpoint: Path, tmp_path: Path
) -> None:
    released = load_file(small_checkpoint / "model.safetensors")
    sent = all_as_sent(released, torch.float32)
    weights, version = _weights(group, tmp_path), group.version()
    assert weights.keys() == sent.keys()
    assert all(torch.equal(weights[name], sent[name]) for name in sent)
    assert version.digest == weights_digest(sent)
    assert (version.run, version.attempt, version.number) == ("test", 1, 0)


def test_a_step_of_two_ranks_is_the_step_of_one_process(
    group: TrainerGroup, rollouts: list[Rollout], small_checkpoint: Path, tmp_path: Path
) -> None:
    assert_same_step(group, SETTINGS, rollouts, ADVANTAGES, small_checkpoint, tmp_path / "saved")


@pytest.mark.parametrize(
    "media",
    [[("image", (64, 96))], [("audio", (90,))], [("video", (3, 64, 32))], [("audio", (33,)), ("image", (32, 32))]],
    ids=KINDS[1:],
)
def test_media_on_one_rank_only(
    group: TrainerGroup, make_rollout: MakeRollout, media: Any, small_checkpoint: Path, tmp_path: Path
) -> None:
    rollouts = [make_rollout(0, prompt=20, answer=9), make_rollout(1, media=media)]
    assert_same_step(group, SETTINGS, rollouts, [0.5, -1.0], small_checkpoint, tmp_path / "saved")


def test_every_part_of_the_model_learns_from_one_batch(
    group: TrainerGroup, rollouts: list[Rollout], tmp_path: Path
) -> None:
    before = _weights(group, tmp_path)
    group.update(rollouts, ADVANTAGES)
    moved = {name for name, tensor in _weights(group, tmp_path).items() if not torch.equal(tensor, before[name])}
    parts = ["vision_model.", "mlp1.1.", "language_model.backbone.embeddings.", "language_model.lm_head."]
    parts += [f"language_model.backbone.layers.{layer}.mixer." for layer in range(4)]
    for part in parts:
        assert any(name.startswith(part) for name in moved), part
    assert not any(name.startswith("sound_") for name in moved)


def test_training_resumes_bitwise(
    group: TrainerGroup, second: TrainerGroup, rollouts: list[Rollout], tmp_path: Path
) -> None:
    group.update(rollouts, ADVANTAGES)
    group.save(tmp_path / "saved")
    group.update(rollouts[::-1], ADVANTAGES)
    version, uninterrupted = group.version(), _weights(group, tmp_path)
    second.load(tmp_path / "saved")
    assert second.version().number == 1
    second.update(rollouts[::-1], ADVANTAGES)
    assert second.version() == version
    resumed = _weights(second, tmp_path)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in uninterrupted.items())


def test_training_resumes_on_another_number_of_ranks(
    group: TrainerGroup, rollouts: list[Rollout], small_checkpoint: Path, tmp_path: Path
) -> None:
    group.update(rollouts, ADVANTAGES)
    group.save(tmp_path / "two")
    version = group.version()
    group.update(rollouts, ADVANTAGES)
    group.save(tmp_path / "two-again")
    with TrainerGroup.start(small_checkpoint, SETTINGS.model_copy(update={"world_size": 1}), run="test") as single:
        single.load(tmp_path / "two")
        assert single.version() == version
        shutil.rmtree(tmp_path / "two")  # a run keeps its latest states only
        single.update(rollouts, ADVANTAGES)
        single.save(tmp_path / "one")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two-again" / name).read_bytes()
    expected = load_file(tmp_path / "two-again" / checkpoint.OPTIMIZER)
    resumed = load_file(tmp_path / "one" / checkpoint.OPTIMIZER)
    assert resumed.keys() == expected.keys()
    for name, moment in expected.items():
        assert torch.allclose(resumed[name], moment, atol=1e-6, rtol=1e-3), name


def test_a_checkpoint_that_cannot_be_used_leaves_the_group_as_it_was(
    group: TrainerGroup, rollouts: list[Rollout], tmp_path: Path
) -> None:
    version = group.version()
    (tmp_path / "there").mkdir()
    with pytest.raises(CheckpointError, match="never overwritten"):
        group.save(tmp_path / "there")
    with pytest.raises(CheckpointError, match="no training checkpoint"):
        group.load(tmp_path / "there")
    assert group.version() == version
    assert len(group.score(rollouts)) == 5


def test_a_slab_that_cannot_be_filled_leaves_the_group_as_it_was(
    group: TrainerGroup, rollouts: list[Rollout], tmp_path: Path
) -> None:
    version = group.version()
    with pytest.raises(SlabError, match="cannot be opened"):
        group.fill(tmp_path / "nowhere.weights")
    with pytest.raises(SlabFullError, match="does not fit"):
        group.fill(Slab.create(tmp_path / "small.weights", 2**16).path)
    busy = Slab.create(tmp_path / "busy.weights", SLAB_BYTES)
    with busy.writing(()), pytest.raises(SlabBusyError, match=f"process {os.getpid()}"):
        group.fill(busy.path)
    assert group.version() == version
    assert len(group.score(rollouts)) == 5
    assert group.fill(busy.path).version == version


def test_what_cannot_be_learnt_from_is_refused_and_changes_nothing(
    group: TrainerGroup, rollouts: list[Rollout]
) -> None:
    version = group.version()
    with pytest.raises(ConfigError, match="5 rollouts but 1 advantages"):
        group.update(rollouts, [1.0])
    with pytest.raises(ConfigError, match="'prompt-0' is nan"):
        group.update(rollouts, [float("nan"), 0, 0, 0, 0])
    with pytest.raises(GradientError, match="the weights stay at"):
        group.update(rollouts, [1e38] * 5)
    assert group.version() == version


def test_bfloat16_scores_with_float32_masters(
    coarse: TrainerGroup, small_checkpoint: Path, rollouts: list[Rollout], tmp_path: Path
) -> None:
    exact = whole_model(small_checkpoint)
    scores = coarse.score(rollouts)
    stats = coarse.update(rollouts, ADVANTAGES)
    weights = _weights(coarse, tmp_path)
    for rollout, score in zip(rollouts, scores, strict=True):
        with torch.no_grad():
            alone = exact.score_packed(pack([rollout]), temperature=rollout.temperature).logprobs.double().numpy()
        assert 1e-6 < np.abs(score.logprobs - alone).mean() < 0.1
    assert stats.grad_norm > 0
    for name, tensor in weights.items():
        if tensor.is_floating_point():
            exact_name = name.endswith((".A_log", ".gate.e_score_correction_bias"))
            assert tensor.dtype == (torch.float32 if exact_name else torch.bfloat16), name


def test_a_checkpoint_that_cannot_be_loaded_is_the_callers_error(small_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copy(small_checkpoint / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match="safetensors"):
        TrainerGroup.start(tmp_path, SETTINGS, run="test")


def test_earlier_weights_score_as_they_did_and_change_nothing(group: TrainerGroup, rollouts: list[Rollout]) -> None:
    before, version = group.score(rollouts), str(group.version())
    group.take_snapshot("start")
    group.update(rollouts, ADVANTAGES)
    after, learnt = group.score(rollouts), str(group.version())
    again = group.score(rollouts, "start")
    assert {score.version for score in again} == {version}
    for one, other in zip(before, again, strict=True):
        assert np.array_equal(one.logprobs, other.logprobs)
    assert any(not np.array_equal(b.logprobs, a.logprobs) for b, a in zip(before, after, strict=True))
    assert str(group.version()) == learnt
    for one, other in zip(after, group.score(rollouts), strict=True):
        assert np.array_equal(one.logprobs, other.logprobs)
    group.reset()
    assert str(group.version()).rpartition("/")[2] == version.rpartition("/")[2]
    assert np.array_equal(group.score(rollouts)[0].logprobs, before[0].logprobs)
    group.drop_snapshot()
    with pytest.raises(ConfigError, match="there is no snapshot 'start' of the weights; there are: none"):
        group.score(rollouts, "start")


def test_devices_that_the_cluster_lacks_are_refused_at_once(small_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"2 ranks need a CUDA device each, and this Ray cluster has 0"):
        TrainerGroup.start(small_checkpoint, TrainSettings(world_size=2, device="cuda"), run="none")


# The last test with this group.
def test_a_rank_killed_while_it_works_raises_within_seconds(second: TrainerGroup, rollouts: list[Rollout]) -> None:
    pids = second.pids
    started = time.monotonic()
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(TrainerDeadError, match="process of rank 1 died"):
        second.update(rollouts, ADVANTAGES)
    assert time.monotonic() - started < 10
    with pytest.raises(TrainerDeadError, match="start a new one"):
        second.score(rollouts)
    second.close()
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


# The last test with this group.
def test_close_leaves_no_process(coarse: TrainerGroup) -> None:
    pids = coarse.pids
    assert [pid for pid in pids if os.path.exists(f"/proc/{pid}")] == pids
    coarse.close()
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
    with pytest.raises(TrainerDeadError, match="it was closed"):
        coarse.version()
