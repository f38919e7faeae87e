"""Weights that another program publishes reach a real engine through a sync, or leave it as it was."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from omni_rl.client import publish
from omni_rl.errors import NonFiniteWeightsError, SyncRolledBackError
from omni_rl.ledger.sync_journal import opened_journal
from omni_rl.models.nemotron_omni.released import RELEASED
from omni_rl.rollout.handle import RolloutHandle
from omni_rl.rollout.settings import EngineSettings
from omni_rl.rollout.syncing import weight_sync
from omni_rl.rollout.types import SamplingSettings
from omni_rl.sync.checkpoint import CheckpointTensors
from omni_rl.sync.sources import PublishedSource
from tests.rollout.conftest import prompts

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SAMPLING = SamplingSettings(max_tokens=8, seed=5, ignore_eos=True)
HEAD = "language_model.lm_head.weight"


@pytest.fixture(scope="module")
def handle(small_checkpoint: Path) -> Iterator[RolloutHandle]:
    ray.init(address="local", include_dashboard=False, log_to_driver=False, object_store_memory=2**27)
    with RolloutHandle.start(EngineSettings(model=small_checkpoint, run="published")) as started:
        yield started
    ray.shutdown()


def test_published_weights_are_served_after_a_sync(
    handle: RolloutHandle, small_checkpoint: Path, tmp_path: Path
) -> None:
    original = dict(CheckpointTensors(small_checkpoint, torch.float32, RELEASED))
    doubled = original | {HEAD: original[HEAD] * 2}
    answers = handle.sample(handle.render(prompts()), SAMPLING)
    slabs = tmp_path / "slabs"

    def logprobs() -> list[np.ndarray]:
        return [score.logprobs for score in handle.rescore(answers, alone=True)]

    with (
        opened_journal(tmp_path / "ledger.db", "published") as journal,
        weight_sync([handle], journal, base=slabs) as sync,
    ):
        before = logprobs()
        published = publish(doubled, run="published", number=1, directory=slabs)
        assert all(np.array_equal(a, b) for a, b in zip(before, logprobs(), strict=True))
        result = sync.sync(PublishedSource(published.path, published.version))
        assert result.version == sync.version == handle.weight_version == published.version
        assert result.elements_proven == result.elements > 0
        moved = logprobs()
        assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(before, moved, strict=True))

        late = publish(original, run="published", number=2, directory=slabs)
        with pytest.raises(SyncRolledBackError, match="no longer"):
            sync.sync(PublishedSource(published.path, published.version))
        assert handle.weight_version == published.version
        assert all(np.array_equal(a, b) for a, b in zip(moved, logprobs(), strict=True))

        sync.sync(PublishedSource(late.path, late.version))
        assert handle.weight_version == late.version
        assert all(np.array_equal(a, b) for a, b in zip(before, logprobs(), strict=True))

        decay = next(name for name in original if name.endswith(".A_log"))
        broken = original[decay].clone()
        broken[:2] = float("nan")
        lost = publish(original | {decay: broken}, run="published", number=3, directory=slabs)
        with pytest.raises(NonFiniteWeightsError, match=rf"{re.escape(decay)}: 2 NaN of {broken.numel()} elements"):
            sync.sync(PublishedSource(lost.path, lost.version))
        assert handle.weight_version == late.version
        assert all(np.array_equal(a, b) for a, b in zip(before, logprobs(), strict=True))
        result = sync.sync(PublishedSource(lost.path, lost.version), allow_nonfinite=True)
        assert (result.serving, result.allow_nonfinite) == (handle.weight_version, True)
        assert result.nonfinite == (f"{decay}: 2 NaN of {broken.numel()} elements",)
    assert list(slabs.iterdir()) == []
