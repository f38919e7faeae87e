"""Two FSDP ranks in the matched mode beside vLLM: in bfloat16, bit for bit, and still so after learning and a sync.

The engine has more threads than a rank: a decode whose attention is split over them would have bits of its own.
"""

from pathlib import Path

import numpy as np
import pytest

from omni_rl.kinds import KINDS
from omni_rl.ledger.sync_journal import opened_journal
from omni_rl.rollout.handle import RolloutHandle
from omni_rl.rollout.settings import EngineSettings
from omni_rl.rollout.syncing import weight_sync
from omni_rl.rollout.types import Rollout, SamplingSettings
from omni_rl.settings import Numerics
from omni_rl.sync.sources import FsdpSource
from omni_rl.tasks.samples import demo_prompts
from omni_rl.train.group import TrainerGroup
from omni_rl.train.settings import TrainSettings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

SAMPLING = SamplingSettings(max_tokens=8, seed=5, ignore_eos=True)


def _assert_same_bits(numerics: Numerics, trainer: TrainerGroup, engine: RolloutHandle, answers: list[Rollout]) -> None:
    for answer, score, prefill in zip(answers, trainer.score(answers), engine.check(answers), strict=True):
        assert np.array_equal(score.logprobs, prefill.logprobs), answer.prompt.kind
        if numerics == "batch_invariant":
            assert np.array_equal(score.logprobs, answer.logprobs), answer.prompt.kind


@pytest.mark.parametrize("numerics", ["matched", "batch_invariant"])
def test_logprobs_are_the_engines_before_and_after_an_update(
    numerics: Numerics, small_checkpoint: Path, tmp_path: Path
) -> None:
    invariant = numerics == "batch_invariant"
    served = EngineSettings(model=small_checkpoint, dtype="bfloat16", run="test", batch_invariant=invariant, threads=2)
    settings = TrainSettings(
        world_size=2, dtype="bfloat16", numerics=numerics, learning_rate=1e-3, collective_timeout=120.0
    )
    with (
        TrainerGroup.start(small_checkpoint, settings, run="test") as trainer,
        RolloutHandle.start(served) as engine,
        opened_journal(tmp_path / "ledger.db", "test") as journal,
        weight_sync([engine], journal, base=tmp_path) as sync,
    ):
        prompts = engine.render([prompt for kind in KINDS for prompt in demo_prompts(kind, 1, 0)])
        answers = engine.sample(prompts, SAMPLING)
        _assert_same_bits(numerics, trainer, engine, answers)
        before = trainer.score(answers)
        trainer.update(answers, [1.0, -1.0, 1.0, -1.0, 1.0])
        sync.sync(FsdpSource(trainer))
        assert not np.array_equal(trainer.score(answers)[0].logprobs, before[0].logprobs)
        _assert_same_bits(numerics, trainer, engine, engine.sample(prompts, SAMPLING))
