"""A sequence's router choices: which of them differ, where the first flip is, and which margins decide."""

from dataclasses import replace

import numpy as np
import pytest

from omni_rl.consistency.left_out import NOTHING, TIES, kept
from omni_rl.consistency.records import SampleRecord, differing
from omni_rl.consistency.router import Flip, first_flip, flip_margins

PROMPT, TOKENS, LAYERS = 3, 4, 3
POSITIONS = PROMPT + TOKENS - 1


def record(*flips: tuple[int, int, float]) -> SampleRecord:
    """A record with flips at these positions and layers, by these margins."""
    experts = np.tile(np.array([4, 1], np.int16), (POSITIONS, LAYERS, 1))
    other, margins = experts.copy(), np.full((POSITIONS, LAYERS), 0.5, np.float32)
    for position, layer, margin in flips:
        other[position, layer], margins[position, layer] = (4, 7), margin
    logprobs = np.full(TOKENS, -1.0)
    return SampleRecord("s", "text", PROMPT, logprobs, logprobs - 1.0, experts, other, margins)


def without_margins() -> SampleRecord:
    return replace(record((2, 1, 0.25)), margins=None)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ((0, 1), (0, 1), False),
        ((0, 1), (1, 0), False),
        ((0, 1), (0, 2), True),
        ((0, 1), (2, 0), True),
        ((0, 2), (0, 1), True),
        ((0, -1), (0, 2), False),  # it is not known
        ((0, 2), (-1, 0), False),
        ((-1, -1), (0, 2), False),
    ],
)
def test_choices_differ_if_they_are_known_to_be_other_sets(
    ours: tuple[int, int], theirs: tuple[int, int], expected: bool
) -> None:
    sides = (np.array([[(5, 6)], [side]], np.int16) for side in (ours, theirs))
    assert differing(*sides).tolist() == [[False], [expected]]


def test_the_first_flip_is_the_earliest_and_of_one_position_the_lowest() -> None:
    one = record((4, 0, 0.125), (2, 2, 0.25), (2, 1, 0.375))
    assert first_flip(one) == Flip("s", 2, 1, 0.375)
    assert first_flip(record()) is None
    margins = flip_margins(one)
    assert margins is not None
    assert margins.tolist() == [np.inf, np.inf, 0.375, np.inf, 0.125, np.inf]
    none = flip_margins(record())
    assert none is not None
    assert none.tolist() == [np.inf] * POSITIONS


def test_without_choices_or_margins_nothing_is_known_of_flips() -> None:
    bare = SampleRecord("s", "text", PROMPT, np.full(TOKENS, -1.0), np.full(TOKENS, -2.0))
    assert bare.differing_choices is None
    for one in (bare, without_margins(), replace(record((2, 1, 0.25)), train_experts=None)):
        assert first_flip(one) is None
        assert flip_margins(one) is None
        assert kept(one, TIES["float32"]).all()
    assert replace(record((2, 1, 0.25)), rollout_experts=None).differing_choices is None


@pytest.mark.parametrize("more", [-1, 1])
@pytest.mark.parametrize(
    "of",
    [
        ("rollout_experts",),
        ("train_experts",),
        ("margins",),
        ("rollout_experts", "train_experts"),
        ("train_experts", "margins"),
        ("rollout_experts", "train_experts", "margins"),
    ],
)
def test_choices_of_other_positions_than_the_sequence_has_are_refused(of: tuple[str, ...], more: int) -> None:
    one = record()
    wrong = {name: np.resize(getattr(one, name), (POSITIONS + more, *getattr(one, name).shape[1:])) for name in of}
    with pytest.raises(ValueError, match=rf"sample s: .*expected {POSITIONS}"):
        replace(one, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(), (2, 2)])
def test_logprobs_are_one_value_a_token(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="one value a sampled token"):
        SampleRecord("s", "text", PROMPT, np.zeros(shape), np.zeros(shape))


@pytest.mark.parametrize(
    ("dtype", "margin", "touched"),
    [
        ("float32", 0.99e-5, [False, True, True, True]),
        ("float32", 1.01e-5, [False] * 4),
        ("bfloat16", 0.99e-2, [False, True, False, False]),
        ("bfloat16", 1.01e-2, [False] * 4),
        ("float16", 0.99e-2, [False, True, False, False]),
        ("fp8", 0.99e-2, [False, True, False, False]),
    ],
)
def test_a_flip_is_a_tie_below_the_margin_of_its_dtype(dtype: str, margin: float, touched: list[bool]) -> None:
    one = record((PROMPT, 1, margin))  # the second sampled token is predicted there
    assert (~kept(one, TIES[dtype])).tolist() == touched
    assert kept(one, NOTHING).all()


def test_after_a_first_flip_that_is_no_tie_every_token_is_kept() -> None:
    for first, touched in ((0.5, 0), (1e-7, 3)):
        one = record((PROMPT, 1, first), (PROMPT + 1, 0, 1e-7))
        assert int((~kept(one, TIES["float32"])).sum()) == touched
