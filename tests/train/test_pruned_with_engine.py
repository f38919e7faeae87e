"""Pruned videos through the whole pair: one setting of the engine, two ranks of the trainer, new weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from omni_rl.errors import PromptError
from omni_rl.ledger.sync_journal import opened_journal
from omni_rl.rollout.handle import RolloutHandle
from omni_rl.rollout.settings import EngineSettings
from omni_rl.rollout.syncing import weight_sync
from omni_rl.rollout.types import Rollout, SamplingSettings
from omni_rl.sync.sources import FsdpSource
from omni_rl.tasks.samples import demo_prompts
from omni_rl.train.group import TrainerGroup
from omni_rl.train.settings import TrainSettings
from omni_rl.train.types import Score

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

SAMPLING = SamplingSettings(max_tokens=8, seed=5, ignore_eos=True)
SETTINGS = TrainSettings(world_size=2, learning_rate=1e-3, collective_timeout=120.0)


def _assert_agreement(rollouts: list[Rollout], scores: list[Score]) -> None:
    for rollout, score in zip(rollouts, scores, strict=True):
        assert {span.version for span in rollout.version_spans} == {score.version}
        assert rollout.engine_digests == score.digests
        for theirs, ours in zip(rollout.kept, score.kept, strict=True):
            assert (theirs is None) == (ours is None)
            if theirs is not None and ours is not None:
                assert theirs.sum(1).tolist() == ours.sum(1).tolist()
        difference = np.abs(score.logprobs - rollout.logprobs)
        assert difference.mean() < 1e-5
        assert difference.max() < 1e-4


def test_both_sides_prune_alike_before_and_after_an_update(
    local_ray: None, small_checkpoint: Path, tmp_path: Path
) -> None:
    engine_settings = EngineSettings(model=small_checkpoint, run="test", video_pruning_rate=0.5)
    with (
        TrainerGroup.start(small_checkpoint, SETTINGS, run="test") as trainer,
        RolloutHandle.start(engine_settings) as engine,
    ):
        prompts = engine.render(
            [*demo_prompts("text", 1, 0), *demo_prompts("video", 3, 0), *demo_prompts("mixed", 2, 0)]
        )
        rollouts = engine.sample(prompts, SAMPLING)
        assert any(mask is not None and not mask.all() for rollout in rollouts for mask in rollout.kept)
        _assert_agreement(rollouts, trainer.score(rollouts))
        trainer.update(rollouts, [1.0, -1.0, 0.5, 1.0, -0.5, 0.5])
        with (
            opened_journal(tmp_path / "ledger.db", "test") as journal,
            weight_sync([engine], journal, base=tmp_path) as sync,
        ):
            sync.sync(FsdpSource(trainer))
        again = engine.sample(prompts, SAMPLING)
        _assert_agreement(again, trainer.score(again))

        (kept,) = again[1].kept
        assert kept is not None
        with pytest.raises(PromptError, match=r"video 0: .* are said to be kept"):
            trainer.score([replace(again[1], kept=(kept[:-1],))])
        _assert_agreement(again, trainer.score(again))
