"""An engine in a Ray actor: its answers, its errors, its end and its successor."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from omni_rl.errors import (
    CheckpointError,
    EngineDeadError,
    FencedError,
    PromptError,
    QuarantinedError,
    ReplicaDeadError,
    ReplicaStoppedError,
    WeightUpdateError,
)
from omni_rl.models.nemotron_omni.released import RELEASED
from omni_rl.rollout.handle import RolloutHandle
from omni_rl.rollout.settings import EngineSettings
from omni_rl.rollout.types import SamplingSettings, VersionSpan
from omni_rl.sync.checkpoint import CheckpointTensors
from omni_rl.sync.replica import (
    Apply,
    Deadline,
    Fence,
    Pause,
    Quarantine,
    Resume,
    Resumed,
    SlabRef,
    Verify,
)
from tests.rollout.conftest import prompts, sealed

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SAMPLING = SamplingSettings(max_tokens=8, seed=5, ignore_eos=True)
DEADLINE = Deadline("test", 60.0)


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    ray.init(address="local", include_dashboard=False, log_to_driver=False, object_store_memory=2**27)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def handle(small_checkpoint: Path) -> Iterator[RolloutHandle]:
    with RolloutHandle.start(EngineSettings(model=small_checkpoint)) as started:
        yield started


def doubled_head(checkpoint: Path, number: int, directory: Path) -> SlabRef:
    """The checkpoint's weights with larger logits, in a slab."""
    tensors = dict(CheckpointTensors(checkpoint, torch.float32, RELEASED))
    tensors["language_model.lm_head.weight"] = tensors["language_model.lm_head.weight"] * 2
    return sealed(tensors, "float32", number, directory / f"{number}.slab")


def bring(handle: RolloutHandle, slab: SlabRef, epoch: int = 1) -> Resumed:
    """The commands of a sync that goes through."""
    handle.obey(Pause(epoch, "test"), DEADLINE)
    handle.obey(Apply(epoch, "test", slab), DEADLINE)
    proof = handle.obey(Verify(epoch, "test", slab), DEADLINE)
    assert not proof.mismatches
    resumed: Resumed = handle.obey(Resume(epoch, "test", slab.version), DEADLINE)
    return resumed


def engine_process(handle: RolloutHandle) -> int:
    assert handle.pid is not None
    return handle.pid


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_renders_samples_rescores_and_updates(handle: RolloutHandle, small_checkpoint: Path, tmp_path: Path) -> None:
    rendered = handle.render(prompts())
    answers = handle.sample(rendered, SAMPLING)
    scores = handle.rescore(answers, alone=True)
    assert handle.parameters > 1_000_000
    for answer, score in zip(answers, scores, strict=True):
        assert np.abs(answer.logprobs - score.logprobs).max() < 1e-4
        assert answer.engine_digests == tuple(item.digests for item in answer.prompt.items)
    slab = doubled_head(small_checkpoint, 1, tmp_path)
    assert 0 < bring(handle, slab).stall < 10
    assert handle.weight_version == slab.version
    (again, *_) = handle.rescore(answers[:1], alone=True)
    assert again.version == slab.version
    assert np.abs(again.logprobs - scores[0].logprobs).max() > 1e-3


def test_refusals_keep_their_type_and_the_engine_lives_on(handle: RolloutHandle) -> None:
    rendered = handle.render(prompts()[:1])
    with pytest.raises(PromptError, match="max_model_len"):
        handle.sample(rendered, replace(SAMPLING, max_tokens=100_000))
    assert len(handle.sample(rendered, SAMPLING)) == 1


def test_commands_run_between_the_steps_of_a_batch(
    handle: RolloutHandle, small_checkpoint: Path, tmp_path: Path
) -> None:
    """Weights change in the middle of a long answer, which waits for the resumption and is told apart by version."""
    rendered = handle.render(prompts()[:1])
    old, slab = handle.weight_version, doubled_head(small_checkpoint, 5, tmp_path)
    with ThreadPoolExecutor(2) as threads:
        long = threads.submit(handle.sample, rendered, replace(SAMPLING, max_tokens=400))
        time.sleep(0.3)
        handle.obey(Pause(2, "test"), DEADLINE)
        late = threads.submit(handle.sample, rendered, SAMPLING)
        time.sleep(0.3)
        assert handle.status(DEADLINE).standing == "paused"
        assert not long.done()
        assert not late.done()
        bring(handle, slab, epoch=2)
        (answer,), (afterwards,) = long.result(), late.result()
    assert [span.version for span in answer.version_spans] == [old, slab.version]
    assert [span.version for span in afterwards.version_spans] == [slab.version]


def test_an_older_coordinator_is_refused(handle: RolloutHandle) -> None:
    handle.obey(Fence(7, "new"), DEADLINE)
    with pytest.raises(FencedError, match="Pause of sync old has epoch 6, a newer coordinator took over with 7"):
        handle.obey(Pause(6, "old"), DEADLINE)
    assert handle.status(DEADLINE).standing == "serving"


def test_a_stopped_engine_is_not_called_dead(handle: RolloutHandle) -> None:
    rendered = handle.render(prompts()[:1])
    pid = engine_process(handle)
    os.kill(pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        with pytest.raises(ReplicaStoppedError, match=f"process {pid} is stopped"):
            handle.sample(rendered, SAMPLING)
        with pytest.raises(ReplicaStoppedError, match="is stopped"):
            handle.obey(Fence(8, "test"), Deadline("fence", 1.0))
        assert time.monotonic() - started < 10
    finally:
        os.kill(pid, signal.SIGCONT)
    assert len(handle.sample(rendered, SAMPLING)) == 1


def test_a_quarantined_engine_answers_nobody_until_it_is_replaced(handle: RolloutHandle) -> None:
    rendered = handle.render(prompts()[:1])
    with ThreadPoolExecutor(1) as threads:
        under_way = threads.submit(handle.sample, rendered, replace(SAMPLING, max_tokens=400))
        time.sleep(0.3)
        handle.obey(Quarantine(8, "test", "a test said so"), DEADLINE)
        with pytest.raises(QuarantinedError, match="a test said so"):
            under_way.result()
    with pytest.raises(QuarantinedError, match="replace it"):
        handle.sample(rendered, SAMPLING)
    with pytest.raises(QuarantinedError):
        handle.obey(Resume(8, "test", "run/1/0/00"), DEADLINE)
    with pytest.raises(WeightUpdateError, match="quarantined"):
        handle.weight_version  # noqa: B018
    handle.replace()
    assert len(handle.sample(rendered, SAMPLING)) == 1


def test_an_engine_that_threw_is_refused_and_replaced(
    handle: RolloutHandle, small_checkpoint: Path, tmp_path: Path
) -> None:
    rendered = handle.render(prompts()[:2])
    slab = doubled_head(small_checkpoint, 2, tmp_path)
    (image, other) = rendered[1].items
    pixels = image.tensors["pixel_values_flat"]
    four = image.tensors | {"pixel_values_flat": torch.cat([pixels, pixels[:1]])}
    broken = replace(rendered[1], items=(replace(image, tensors=four, content_hash="four channels"), other))
    with pytest.raises(EngineDeadError, match="a step ended in"):
        handle.sample([broken], SAMPLING)
    started = time.monotonic()
    with pytest.raises(EngineDeadError, match="replace"):
        handle.sample(rendered, SAMPLING)
    assert time.monotonic() - started < 1
    dead = engine_process(handle)
    handle.replace(closed=True)
    assert not runs(dead)
    assert handle.weight_version.startswith("run/1/0/"), "a replaced engine has the checkpoint's weights"
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(handle.sample, rendered, SAMPLING)
        with pytest.raises(WeightUpdateError, match="Resume of sync test does not fit: the replica is closed"):
            handle.obey(Resume(1, "test", handle.weight_version), DEADLINE)
        assert not waiting.done()
        bring(handle, slab)
        for answer in waiting.result():
            assert answer.version_spans == (VersionSpan(slab.version, 0, SAMPLING.max_tokens),)


def test_an_engine_whose_process_was_killed_is_replaced(handle: RolloutHandle) -> None:
    rendered = handle.render(prompts()[:1])
    os.kill(engine_process(handle), signal.SIGKILL)
    with pytest.raises(ReplicaDeadError, match="its process ended"):
        handle.sample(rendered, SAMPLING)
    with pytest.raises(EngineDeadError, match="cannot be used"):
        handle.rescore([])
    handle.replace()
    assert len(handle.sample(rendered, SAMPLING)) == 1


# The last test with this engine.
def test_closing_ends_the_process(handle: RolloutHandle) -> None:
    pid = engine_process(handle)
    handle.close()
    handle.close()
    assert not runs(pid)
    with pytest.raises(EngineDeadError, match="closed"):
        handle.weight_version  # noqa: B018


def test_a_directory_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        RolloutHandle.start(EngineSettings(model=tmp_path))
