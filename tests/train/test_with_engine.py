"""The trainer beside vLLM: real media of every kind, new weights by reference, a saved state that vLLM serves."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from omni_rl.kinds import KINDS
from omni_rl.ledger.sync_journal import opened_journal
from omni_rl.rollout.handle import RolloutHandle
from omni_rl.rollout.settings import EngineSettings
from omni_rl.rollout.syncing import weight_sync
from omni_rl.rollout.types import Rollout, SamplingSettings
from omni_rl.sync.sources import FsdpSource
from omni_rl.sync.version import WeightVersion
from omni_rl.tasks.samples import demo_prompts
from omni_rl.train.group import TrainerGroup
from omni_rl.train.settings import TrainSettings
from omni_rl.train.types import Score

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

SAMPLING = SamplingSettings(max_tokens=8, seed=5, ignore_eos=True)
SETTINGS = TrainSettings(world_size=2, learning_rate=1e-3, collective_timeout=120.0)


@pytest.fixture(scope="module")
def trainer(local_ray: None, small_checkpoint: Path) -> Iterator[TrainerGroup]:
    with TrainerGroup.start(small_checkpoint, SETTINGS, run="test") as group:
        yield group


def _sample(engine: RolloutHandle) -> list[Rollout]:
    prompts = [prompt for kind in KINDS for prompt in demo_prompts(kind, 2, 0)]
    return engine.sample(engine.render(prompts), SAMPLING)


def _assert_agreement(rollouts: list[Rollout], scores: list[Score]) -> None:
    for rollout, score in zip(rollouts, scores, strict=True):
        assert {span.version for span in rollout.version_spans} == {score.version}
        assert rollout.engine_digests == score.digests
        kind, difference = rollout.prompt.kind, np.abs(score.logprobs - rollout.logprobs)
        assert difference.mean() < 1e-5, kind
        assert difference.max() < 1e-4, kind


def test_both_sides_agree_before_and_after_an_update_and_on_what_was_saved(
    trainer: TrainerGroup, small_checkpoint: Path, tmp_path: Path
) -> None:
    with RolloutHandle.start(EngineSettings(model=small_checkpoint, run="test")) as engine:
        assert engine.weight_version == str(trainer.version())
        rollouts = _sample(engine)
        before = trainer.score(rollouts)
        _assert_agreement(rollouts, before)

        trainer.update(rollouts, [1.0, -1.0] * len(KINDS))
        version = trainer.version()
        with (
            opened_journal(tmp_path / "ledger.db", "test") as journal,
            weight_sync([engine], journal, base=tmp_path) as sync,
        ):
            result = sync.sync(FsdpSource(trainer))
        assert result.version == result.serving == str(version)
        assert result.elements_proven == result.elements > engine.parameters
        rollouts = _sample(engine)
        after = trainer.score(rollouts)
        _assert_agreement(rollouts, after)
        assert after[0].version != before[0].version

    trainer.save(tmp_path / "saved")
    with RolloutHandle.start(EngineSettings(model=tmp_path / "saved", run="test")) as served:
        assert WeightVersion.parse(served.weight_version).digest == version.digest[:16]
        again = _sample(served)
    for rollout, fresh in zip(rollouts, again, strict=True):
        assert fresh.ids.tolist() == rollout.ids.tolist()
        assert np.abs(fresh.logprobs - rollout.logprobs).max() < 1e-4
