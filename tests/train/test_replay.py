"""R3: the training forward goes through the experts that it is told, and says what it would have chosen."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.rollout.types import Rollout
from omni_rl.train.scoring import score_pack
from omni_rl.train.types import Score

from .conftest import MakeRollout


@pytest.fixture(scope="module")
def policy(small_checkpoint: Path) -> NemotronOmniForConditionalGeneration:
    return NemotronOmniForConditionalGeneration.from_pretrained(small_checkpoint, dtype=torch.float32)


@pytest.fixture
def rollouts(make_rollout: MakeRollout) -> list[Rollout]:
    return [make_rollout(0, media=[("image", (64, 64))]), make_rollout(1, answer=7)]


def scored(policy: NemotronOmniForConditionalGeneration, rollouts: list[Rollout], *, replay: bool) -> list[Score]:
    return score_pack(policy, rollouts, version="run/1/0/abc", logprob_chunk=64, replay=replay)


def with_experts(rollouts: list[Rollout], scores: list[Score]) -> list[Rollout]:
    return [replace(rollout, experts=score.experts) for rollout, score in zip(rollouts, scores, strict=True)]


def test_its_own_choices_change_nothing(policy: NemotronOmniForConditionalGeneration, rollouts: list[Rollout]) -> None:
    free = scored(policy, rollouts, replay=False)
    replayed = scored(policy, with_experts(rollouts, free), replay=True)
    for one, other in zip(free, replayed, strict=True):
        assert np.array_equal(one.logprobs, other.logprobs)
        assert one.experts is not None
        assert other.experts is not None
        assert np.array_equal(one.experts, other.experts)


def test_other_experts_of_one_sequence_change_that_sequence_alone(
    policy: NemotronOmniForConditionalGeneration, rollouts: list[Rollout]
) -> None:
    free = scored(policy, rollouts, replay=False)
    other, same = with_experts(rollouts, free)
    assert other.experts is not None
    count = policy.config.llm_config.n_routed_experts
    other = replace(other, experts=((other.experts + 1) % count).astype(np.int16))
    changed, unchanged = scored(policy, [other, same], replay=True)
    assert np.abs(changed.logprobs - free[0].logprobs).max() > 1e-3
    assert unchanged.logprobs == pytest.approx(free[1].logprobs, abs=1e-5)
    # The first layer sees what it always saw, and would still choose what it chose.
    assert changed.experts is not None
    assert free[0].experts is not None
    assert np.array_equal(changed.experts[:, 0], free[0].experts[:, 0])
    # What replay prevents: the policy that learns is the one that sampled, expert by expert.
    alone = scored(policy, [other], replay=True)[0]
    assert alone.logprobs == pytest.approx(changed.logprobs, abs=1e-5)
