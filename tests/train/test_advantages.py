"""Advantages against numbers worked out by hand."""

import numpy as np
import pytest

from omni_rl.train.advantages import Baseline, generalised_advantages, group_advantages, relative_advantages

REWARDS = [1.0, 5.0, 0.0, 5.0, 2.0, 3.0]
GROUPS = ["a", "b", "a", "b", "a", "c"]


def test_group_baseline_compares_answers_to_the_same_prompt_only() -> None:
    advantages = group_advantages([1.0, 10.0, 0.0, 10.0, 2.0], ["a", "b", "a", "b", "a"])
    assert advantages.tolist() == [0.0, 0.0, -1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        ("mean", [0.0, -1.0, 1.0]),
        ("leave_one_out", [0.0, -1.5, 1.5]),
        ("normalised", [0.0, -1 / 1.0001, 1 / 1.0001]),
    ],
)
def test_answers_are_compared_within_their_group(baseline: Baseline, expected: list[float]) -> None:
    result = relative_advantages(REWARDS, GROUPS, baseline)
    assert result.values[[0, 2, 4]] == pytest.approx(expected)


def test_groups_of_equal_rewards_are_dropped_and_counted() -> None:
    result = relative_advantages(REWARDS, GROUPS, "normalised")
    assert result.dropped == 2
    assert result.kept.tolist() == [True, False, True, False, True, False]
    assert result.values[[1, 3, 5]].tolist() == [0.0, 0.0, 0.0]


def test_gae_by_hand() -> None:
    # delta = [0.5 * 0.4 - 0.2, 1 - 0.4] = [0, 0.6]; the first adds 0.5 * 0.8 * 0.6.
    result = generalised_advantages(np.array([0.0, 1.0]), np.array([0.2, 0.4]), gamma=0.5, lam=0.8)
    assert result.tolist() == pytest.approx([0.24, 0.6])


def test_gae_with_lambda_one_is_the_return_less_the_value() -> None:
    rewards, values = np.array([0.0, 0.0, 1.0]), np.array([0.3, 0.5, 0.9])
    assert generalised_advantages(rewards, values, gamma=1.0, lam=1.0) == pytest.approx(1.0 - values)
