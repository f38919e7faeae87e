"""An engine in a Ray actor: its answers, its errors, its end and its successor."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from omni_rl.errors import CheckpointError, EngineDeadError, PromptError
from omni_rl.rollout.actor import RolloutHandle
from omni_rl.rollout.settings import EngineSettings
from omni_rl.rollout.types import SamplingSettings, VersionSpan
from omni_rl.rollout.weights import CheckpointTensors
from omni_rl.sync.digest import weights_digest
from omni_rl.sync.version import WeightVersion
from tests.rollout.conftest import prompts

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SAMPLING = SamplingSettings(max_tokens=8, seed=5, ignore_eos=True)


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    ray.init(address="local", include_dashboard=False, log_to_driver=False, object_store_memory=2**27)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def handle(small_checkpoint: Path) -> Iterator[RolloutHandle]:
    with RolloutHandle.start(EngineSettings(model=small_checkpoint)) as started:
        yield started


def doubled_head(checkpoint: Path, number: int) -> tuple[dict[str, torch.Tensor], str]:
    """The checkpoint's weights with larger logits, and their version."""
    tensors = dict(CheckpointTensors(checkpoint, torch.float32))
    tensors["language_model.lm_head.weight"] = tensors["language_model.lm_head.weight"] * 2
    return tensors, str(WeightVersion("run", 1, number, weights_digest(tensors)))


def engine_process(handle: RolloutHandle) -> int:
    assert handle.pid is not None
    return handle.pid


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_renders_samples_rescores_and_updates(handle: RolloutHandle, small_checkpoint: Path) -> None:
    rendered = handle.render(prompts())
    answers = handle.sample(rendered, SAMPLING)
    scores = handle.rescore(answers, alone=True)
    assert handle.parameters > 1_000_000
    for answer, score in zip(answers, scores, strict=True):
        assert np.abs(answer.logprobs - score.logprobs).max() < 1e-4
        assert answer.engine_digests == tuple(item.digests for item in answer.prompt.items)
    tensors, version = doubled_head(small_checkpoint, 1)
    handle.update_weights(ray.put(tensors), version)
    assert handle.weight_version == version
    (again, *_) = handle.rescore(answers[:1], alone=True)
    assert np.abs(again.logprobs - scores[0].logprobs).max() > 1e-3


def test_refusals_keep_their_type_and_the_engine_lives_on(handle: RolloutHandle) -> None:
    rendered = handle.render(prompts()[:1])
    with pytest.raises(PromptError, match="max_model_len"):
        handle.sample(rendered, replace(SAMPLING, max_tokens=100_000))
    assert len(handle.sample(rendered, SAMPLING)) == 1


def test_an_engine_that_threw_is_refused_and_replaced(handle: RolloutHandle, small_checkpoint: Path) -> None:
    rendered = handle.render(prompts()[:2])
    handle.update_weights(*doubled_head(small_checkpoint, 2))
    (image, other) = rendered[1].items
    ragged = image.tensors | {"pixel_values_flat": image.tensors["pixel_values_flat"][:, 1:]}
    broken = replace(rendered[1], items=(replace(image, tensors=ragged, content_hash="ragged"), other))
    with pytest.raises(EngineDeadError, match="a step ended in"):
        handle.sample([broken], SAMPLING)
    started = time.monotonic()
    with pytest.raises(EngineDeadError, match="replace"):
        handle.sample(rendered, SAMPLING)
    assert time.monotonic() - started < 1
    dead = engine_process(handle)
    handle.replace()
    assert not runs(dead)
    assert handle.weight_version.startswith("run/1/0/"), "a replaced engine has the checkpoint's weights"
    tensors, version = doubled_head(small_checkpoint, 2)
    handle.update_weights(tensors, version)
    for answer in handle.sample(rendered, SAMPLING):
        assert answer.version_spans == (VersionSpan(version, 0, SAMPLING.max_tokens),)


def test_an_engine_whose_process_was_killed_is_replaced(handle: RolloutHandle) -> None:
    rendered = handle.render(prompts()[:1])
    os.kill(engine_process(handle), signal.SIGKILL)
    with pytest.raises(EngineDeadError, match="its process ended"):
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
