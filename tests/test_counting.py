"""Sentences that count things are right of one thing too."""

from omni_rl.counting import agreeing, counted


def test_one_thing_and_several() -> None:
    assert [counted(number, "token") for number in (0, 1, 2)] == ["0 tokens", "1 token", "2 tokens"]
    assert [counted(number, "process", "processes") for number in (1, 2)] == ["1 process", "2 processes"]
    assert [agreeing(number, "was", "were") for number in (1, 2)] == ["was", "were"]
