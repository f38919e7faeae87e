"""Which side is said to be away from float32, also where one of them gives no numbers."""

import math

import pytest

from omni_rl.consistency.attribution.legs import Reference, reference
from omni_rl.consistency.bands import NOISE


@pytest.mark.parametrize(
    ("train", "engine", "side"),
    [
        (0.5, 0.001, "trainer"),
        (0.001, 0.5, "engine"),
        (math.nan, 0.001, "trainer"),
        (0.001, math.nan, "engine"),
        (math.inf, 0.001, "trainer"),
        (math.nan, math.nan, "engine"),
    ],
)
def test_the_side_that_is_far_from_float32_or_no_number_is_named(train: float, engine: float, side: str) -> None:
    found = reference(Reference(train, engine, "text"), 1.0, NOISE["bfloat16"])
    assert found.result == "suspicious"
    assert found.sentence.startswith(f"text: the {side} is ")


def test_a_side_that_is_no_number_is_the_furthest_of_all() -> None:
    kinds = [Reference(0.1, 0.9, "image"), Reference(0.1, math.nan, "text"), Reference(0.2, 0.3, "audio")]
    assert max(kinds, key=lambda each: each.furthest).kind == "text"
    assert max(kinds[::2], key=lambda each: each.furthest).kind == "image"
    assert Reference(math.nan, 0.1, "text").furthest == math.inf
