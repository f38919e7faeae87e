"""Defines rewards: pure functions of an answer's text and of the answer that the prompt expects.

An operator's own reward is any `RewardFunction` that the task's file names as `module:name`. A client of the service
never names one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

LONGEST = 200  # characters; 32 sampled tokens stay below it


class RewardFunction(Protocol):
    """Returns the reward of one answer; `expected` is the prompt's answer, if it has one."""

    def __call__(self, text: str, expected: str | None) -> float: ...


@dataclass(frozen=True)
class Rewards:
    """The rewards of some answers. `values` has one for each answer, None for one that was dropped; `dropped` says why,
    a sentence for each of those."""

    values: tuple[float | None, ...]
    dropped: tuple[str, ...]


def rate(reward: RewardFunction, names: Sequence[str], texts: Sequence[str], expected: Sequence[str | None]) -> Rewards:
    """Reward every answer: `names`, `texts` and `expected` have one entry for each. An answer whose reward raises, or
    is not finite, is dropped and named in `dropped`: it must not stop a run, nor count as a bad answer."""
    values: list[float | None] = []
    dropped = []
    for name, text, answer in zip(names, texts, expected, strict=True):
        value: float | None
        try:
            value = float(reward(text, answer))
            reason = None if math.isfinite(value) else f"is {value}"
        except Exception as error:  # an operator's code, about one answer of many
            value, reason = None, f"raised {type(error).__name__}: {error}"
        values.append(value if reason is None else None)
        if reason is not None:
            dropped.append(f"sample {name}: its reward {reason}")
    return Rewards(tuple(values), tuple(dropped))


def exact_digit(text: str, expected: str | None) -> float:
    """Return 1.0 if the answer starts with the expected digit, else 0.0. What follows the digit does not count."""
    return 1.0 if text.startswith(_given(expected)) else 0.0


def choice_match(text: str, expected: str | None) -> float:
    """Return 1.0 if the answer's first word is the expected one, whatever its case and the marks around it, else
    0.0."""
    words = text.split()
    return 1.0 if words and words[0].strip(".,:;!?\"'()").lower() == _given(expected).lower() else 0.0


def length(text: str, expected: str | None) -> float:
    """Return the answer's length in characters divided by `LONGEST`, at most 1."""
    return min(len(text) / LONGEST, 1.0)


def _given(expected: str | None) -> str:
    """Return the expected answer. Raises `ValueError` if the prompt has none."""
    if expected is None:
        raise ValueError("the prompt has no answer to compare with")
    return expected
