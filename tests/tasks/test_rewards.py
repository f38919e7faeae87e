"""Rewards, and what becomes of one that fails."""

import pytest

from omni_rl.tasks.rewards import choice_match, exact_digit, length, rate


@pytest.mark.parametrize(
    ("text", "reward"),
    [("left", 1.0), ("Left.", 1.0), ("left or right", 1.0), ("right", 0.0), ("", 0.0), ("the left", 0.0)],
)
def test_a_choice_is_the_answers_first_word(text: str, reward: float) -> None:
    assert choice_match(text, "left") == reward


def test_length_ends_at_one() -> None:
    assert (length("", None), length("a" * 50, None), length("a" * 500, None)) == (0.0, 0.25, 1.0)


def test_a_prompt_without_an_answer_drops_its_sample_by_name() -> None:
    found = rate(exact_digit, ["a", "b"], ["7", "7"], ["7", None])
    assert found.values == (1.0, None)
    assert found.dropped == ("sample b: its reward raised ValueError: the prompt has no answer to compare with",)
