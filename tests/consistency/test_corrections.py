"""Corrections against numbers worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from omni_rl.consistency.corrections import METHODS, Correction, Method, sequence_means, sequence_sums, weights
from omni_rl.errors import ConfigError

# Two sequences of ratios (1, 3, 0.25) and (1.5, 0.8).
RATIOS = np.array([1.0, 3.0, 0.25, 1.5, 0.8])
D = np.log(RATIOS)
OFFSETS = np.array([0, 3, 5])
ALL = np.ones(5, np.bool_)


@pytest.mark.parametrize(
    ("correction", "expected"),
    [
        (Correction("none"), [1, 1, 1, 1, 1]),
        (Correction("tis", cap=2), [1, 2, 0.25, 1.5, 0.8]),
        (Correction("mis", cap=2), [1, 0, 0.25, 1.5, 0.8]),
        (Correction("icepop", low=0.5, high=5), [1, 3, 0, 1.5, 0.8]),
        (Correction("sequence_tis", cap=1.1), [0.75, 0.75, 0.75, 1.1, 1.1]),
        (Correction("sequence_mis", cap=1.1), [0.75, 0.75, 0.75, 0, 0]),
        (Correction("geometric", geometric_low=0.95, geometric_high=1.05), [0, 0, 0, 0, 0]),
        (Correction("geometric", geometric_low=0.9, geometric_high=1.2), [1, 1, 1, 1, 1]),
        (Correction("tis", veto=0.3), [0, 0, 0, 1.5, 0.8]),
    ],
)
def test_by_hand(correction: Correction, expected: list[float]) -> None:
    np.testing.assert_allclose(weights(D, OFFSETS, ALL, correction), expected, rtol=1e-12)


def test_masked_tokens_have_no_weight_and_no_say_in_their_sequence() -> None:
    mask = np.array([True, False, True, True, True])
    np.testing.assert_allclose(sequence_sums(D, OFFSETS, mask), np.log([0.25, 1.2]))
    np.testing.assert_allclose(sequence_means(D, OFFSETS, mask), [math.log(0.25) / 2, math.log(1.2) / 2])
    result = weights(D, OFFSETS, mask, Correction("sequence_tis"))
    np.testing.assert_allclose(result, [0.25, 0, 0.25, 1.2, 1.2])


def test_a_veto_looks_at_unmasked_tokens_only() -> None:
    mask = np.array([True, True, False, True, True])
    np.testing.assert_allclose(weights(D, OFFSETS, mask, Correction(veto=0.3)), [1, 2, 0, 1.5, 0.8])


def test_empty_sequences_anywhere() -> None:
    offsets = np.array([0, 0, 3, 3, 5, 5])
    np.testing.assert_allclose(np.exp(sequence_sums(D, offsets, ALL)), [1, 0.75, 1, 1.2, 1])
    assert weights(np.empty(0), np.array([0, 0]), np.empty(0, np.bool_), Correction("sequence_tis")).shape == (0,)


def test_what_cannot_be_weighed_gets_nothing() -> None:
    d = np.array([math.nan, math.inf, -math.inf, 800.0])
    offsets, mask = np.array([0, 1, 2, 3, 4]), np.ones(4, np.bool_)
    np.testing.assert_array_equal(weights(d, offsets, mask, Correction("tis", cap=2)), [0, 2, 0, 2])
    np.testing.assert_array_equal(weights(d, offsets, mask, Correction("mis", cap=2)), [0, 0, 0, 0])


@given(
    st.lists(st.lists(st.floats(-30, 30), max_size=6), min_size=1, max_size=5),
    st.sampled_from([method for method in METHODS if method != "none"]),
)
def test_weights_are_bounded_and_agreement_is_left_alone(sequences: list[list[float]], method: str) -> None:
    correction = Correction(method)  # type: ignore[arg-type]
    d = np.array([value for sequence in sequences for value in sequence])
    offsets = np.cumsum([0, *map(len, sequences)])
    mask = np.ones(len(d), np.bool_)
    result: NDArray[np.float64] = weights(d, offsets, mask, correction)
    assert ((result >= 0) & (result <= max(correction.cap, correction.high))).all()
    np.testing.assert_array_equal(weights(np.zeros_like(d), offsets, mask, correction), np.ones_like(d))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"method": "ppo"}, "ppo"),
        ({"cap": 0.999}, "cap"),
        ({"cap": math.nan}, "cap"),
        ({"low": 1.001}, "band"),
        ({"low": -0.001}, "band"),
        ({"high": 0.999}, "band"),
        ({"geometric_low": 1.001}, "band"),
        ({"geometric_high": 0.999}, "band"),
        ({"veto": 1.0}, "veto"),
        ({"veto": -0.001}, "veto"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Correction(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "correction",
    [
        Correction("tis", cap=1.0),
        Correction("mis", cap=1.0),
        Correction("sequence_mis", cap=1.0),
        Correction("icepop", low=1.0, high=1.0),
        Correction("icepop", low=0.0, high=1.0),
        Correction("geometric", geometric_low=1.0, geometric_high=1.0),
        Correction("tis", veto=0.0),
        Correction("none", veto=0.999),
    ],
)
def test_bounds_hold_what_lies_on_them(correction: Correction) -> None:
    np.testing.assert_array_equal(weights(np.zeros(3), np.array([0, 3]), np.ones(3, np.bool_), correction), np.ones(3))


@pytest.mark.parametrize(("veto", "expected"), [(0.25, [0.25, 1.0]), (np.nextafter(0.25, 1), [0.0, 0.0])])
def test_a_veto_is_for_ratios_below_it(veto: float, expected: list[float]) -> None:
    d = np.log([0.25, 1.0])
    assert np.exp(d).tolist() == [0.25, 1.0]
    assert weights(d, np.array([0, 2]), np.ones(2, np.bool_), Correction(veto=veto)).tolist() == expected


@pytest.mark.parametrize(
    ("method", "ratios", "expected"),
    [
        ("tis", [1.999, 2.001], [1.999, 2.0]),
        ("mis", [1.999, 2.001], [1.999, 0.0]),
        ("icepop", [0.499, 0.501, 4.999, 5.001], [0.0, 0.501, 4.999, 0.0]),
        ("geometric", [0.9899, 0.9901, 1.0099, 1.0101], [0.0, 1.0, 1.0, 0.0]),
        ("sequence_tis", [2.001], [2.0]),
        ("sequence_mis", [1.999, 2.001], [1.999, 0.0]),
    ],
)
def test_bounds_are_the_published_ones_unless_others_are_given(
    method: Method, ratios: list[float], expected: list[float]
) -> None:
    """Each token is a sequence by itself."""
    offsets, mask = np.arange(len(ratios) + 1), np.ones(len(ratios), np.bool_)
    np.testing.assert_allclose(weights(np.log(ratios), offsets, mask, Correction(method)), expected)
    assert Correction().method == "tis"
