"""Two FSDP ranks in the matched mode beside vLLM: in bfloat16, bit for bit, and still so after learning and a sync; and
batch-invariant answers of two engines are those of one, bit for bit.

An engine has more threads than a rank: a decode whose attention is split over them would have bits of its own.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from omni_rl.kinds import KINDS
from omni_rl.ledger.sync_journal import opened_journal
from omni_rl.policies.local import LocalPair
from omni_rl.policies.settings import rollout_names
from omni_rl.rollout.handle import RolloutHandle
from omni_rl.rollout.settings import EngineSettings
from omni_rl.rollout.syncing import weight_sync
from omni_rl.rollout.types import Rollout, SamplingSettings
from omni_rl.settings import Numerics
from omni_rl.tasks.samples import demo_prompts
from omni_rl.train.group import TrainerGroup
from omni_rl.train.settings import TrainSettings
from tests.e2e.test_replicas import ANSWERS, alone, prompts, sampling

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

SAMPLING = SamplingSettings(max_tokens=8, seed=5, ignore_eos=True)


@pytest.fixture(scope="module")
def pair(
    request: pytest.FixtureRequest, local_ray: None, small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalPair]:
    """Both policies with the numerics that the test asks for, and a second engine where those are batch-invariant."""
    numerics: Numerics = request.param
    invariant = numerics == "batch_invariant"
    served = EngineSettings(
        model=small_checkpoint,
        dtype="bfloat16",
        run="test",
        batch_invariant=invariant,
        threads=2,
        max_num_seqs=ANSWERS,
        max_num_batched_tokens=4096,
    )
    settings = TrainSettings(
        world_size=2, dtype="bfloat16", numerics=numerics, learning_rate=1e-3, collective_timeout=120.0
    )
    base = tmp_path_factory.mktemp(numerics)
    with contextlib.ExitStack() as stack:
        trainer = stack.enter_context(TrainerGroup.start(small_checkpoint, settings, run="test"))
        engines = [stack.enter_context(RolloutHandle.start(served, name=name)) for name in rollout_names(1 + invariant)]
        journal = stack.enter_context(opened_journal(base / "ledger.db", "test"))
        sync = stack.enter_context(weight_sync(engines, journal, base=base))
        yield LocalPair(engines, trainer, journal, sync)


def _assert_same_bits(pair: LocalPair, answers: list[Rollout]) -> None:
    for engine in pair.rollouts:
        for answer, score, prefill in zip(answers, pair.score(answers), engine.check(answers), strict=True):
            assert np.array_equal(score.logprobs, prefill.logprobs), answer.prompt.kind
            if engine.settings.batch_invariant:
                assert np.array_equal(score.logprobs, answer.logprobs), answer.prompt.kind


@pytest.mark.parametrize("pair", ["matched", "batch_invariant"], indirect=True)
def test_logprobs_are_the_engines_before_and_after_an_update(pair: LocalPair) -> None:
    rendered = pair.render([prompt for kind in KINDS for prompt in demo_prompts(kind, 1, 0)])
    answers = pair.sample(rendered, SAMPLING)
    _assert_same_bits(pair, answers)
    before = pair.score(answers)
    pair.update(answers, [1.0, -1.0, 1.0, -1.0, 1.0])
    pair.sync()
    assert not np.array_equal(pair.score(answers)[0].logprobs, before[0].logprobs)
    _assert_same_bits(pair, pair.sample(rendered, SAMPLING))


@pytest.mark.parametrize("pair", ["batch_invariant"], indirect=True)
def test_batch_invariant_answers_are_those_of_one_replica_bit_for_bit(pair: LocalPair) -> None:
    given = prompts(pair, 0)
    one, both = alone(pair).sample(given, sampling(0)), pair.sample(given, sampling(0))
    for a, b in zip(one, both, strict=True):
        assert a.ids.tolist() == b.ids.tolist()
        assert a.logprobs.tolist() == b.logprobs.tolist()
        assert np.array_equal(a.experts, b.experts)  # type: ignore[arg-type]
