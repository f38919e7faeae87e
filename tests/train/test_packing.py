"""Every token goes to the model once, within the budget, evenly; answers come back in order."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omni_rl.errors import ConfigError
from omni_rl.rollout.types import Rollout
from omni_rl.train.packing import pack, temperatures
from omni_rl.train.plan import distribute, plan_packs, restore, sequence_length

from .conftest import MakeRollout

LENGTHS = st.lists(st.integers(1, 50), max_size=40)


@given(LENGTHS, st.integers(50, 200), st.integers(1, 5))
def test_a_plan_holds_every_sequence_once_within_the_budget_and_gives_ranks_equally_many_packs(
    lengths: list[int], budget: int, world_size: int
) -> None:
    plan = plan_packs(lengths, budget, world_size)
    packs = [pack for packs in plan for pack in packs]
    assert sorted(index for pack in packs for index in pack) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in pack) <= budget for pack in packs)
    assert len(plan) == world_size
    assert len({len(packs) for packs in plan}) == 1
    assert len(plan[0]) >= 1


@given(LENGTHS, st.integers(50, 200), st.integers(1, 5))
def test_packs_are_balanced_to_within_one_sequence(lengths: list[int], budget: int, world_size: int) -> None:
    loads = [sum(lengths[i] for i in pack) for packs in plan_packs(lengths, budget, world_size) for pack in packs]
    assert max(loads) - min(loads) <= max(lengths, default=0)


@given(LENGTHS, st.integers(50, 200), st.integers(1, 5))
def test_results_come_back_in_order(lengths: list[int], budget: int, world_size: int) -> None:
    plan = plan_packs(lengths, budget, world_size)
    names = [f"sequence {index}" for index in range(len(lengths))]
    assert restore(plan, distribute(plan, names)) == names


def test_no_more_packs_than_the_budget_asks_for() -> None:
    assert plan_packs([10] * 8, budget=40, world_size=2) == [[[0, 2, 4, 6]], [[1, 3, 5, 7]]]


def test_a_sequence_beyond_the_budget_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"sequence 1 has 101 tokens.*max_pack_tokens = 100"):
        plan_packs([3, 101, 5], budget=100, world_size=2)


def test_packed_sequences_lie_back_to_back_and_only_answers_are_scored(make_rollout: MakeRollout) -> None:
    rollouts = [make_rollout(0, prompt=5, answer=3), make_rollout(1, prompt=2, answer=0), make_rollout(2, answer=7)]
    batch = pack(rollouts)
    assert batch.cu_seqlens.tolist() == [0, 8, 10, 23]
    assert batch.cu_seqlens.dtype == torch.int32
    for rollout, start, end in zip(rollouts, [0, 8, 10], [8, 10, 23], strict=True):
        both = np.concatenate([rollout.prompt.ids, rollout.ids])
        assert batch.ids[start:end].tolist() == both.tolist()
        scored = batch.ids[start:end][batch.score_mask[start:end]]
        assert scored.tolist() == rollout.ids.tolist()


def test_media_point_at_their_placeholders_in_the_pack(make_rollout: MakeRollout) -> None:
    rollouts = [
        make_rollout(0, prompt=9),
        make_rollout(1, media=[("image", (64, 32)), ("image", (32, 96))]),
        make_rollout(2),
    ]
    batch = pack(rollouts)
    assert [media.sample for media in batch.media] == ["prompt-1", "prompt-1"]
    for media, item in zip(batch.media, rollouts[1].prompt.items, strict=True):
        assert set(batch.ids[media.positions].tolist()) == {18}
        assert len(media.positions) == len(item.positions)
        assert torch.equal(media.tensors["pixel_values_flat"], item.tensors["pixel_values_flat"])
    covered = torch.cat([media.positions for media in batch.media])
    assert torch.equal(covered, (batch.ids == 18).nonzero()[:, 0])


def test_a_rank_without_rollouts_gets_a_sequence_that_can_be_scored() -> None:
    batch = pack([])
    assert batch.cu_seqlens.tolist() == [0, len(batch.ids)]
    assert batch.score_mask.tolist() == [False, True]
    assert temperatures([]).shape == (1,)


def test_read_only_arrays_as_ray_hands_them_over_can_be_packed(make_rollout: MakeRollout) -> None:
    rollout: Rollout = make_rollout(0)
    rollout.ids.setflags(write=False)
    rollout.prompt.ids.setflags(write=False)
    assert len(pack([rollout]).ids) == sequence_length(rollout)


def test_each_token_keeps_its_rollouts_temperature(make_rollout: MakeRollout) -> None:
    rollouts = [make_rollout(0, answer=2, temperature=0.5), make_rollout(1, answer=1, temperature=1.5)]
    assert temperatures(rollouts).tolist() == [0.5, 0.5, 1.5]
