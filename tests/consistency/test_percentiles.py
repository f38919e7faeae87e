"""Percentiles that do not sort everything are still those of everything: numpy's own, exactly."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from omni_rl.consistency.percentiles import FEW, SAMPLE, percentiles

WANTED = (50, 95, 99)


@given(arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 1e300, width=64)))
def test_few_values(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> None:
    assert percentiles(values, WANTED) == np.percentile(values, WANTED).tolist()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(FEW, 5 * FEW),
    shape=st.sampled_from(["normal", "heavy", "sorted", "falling", "steps", "constant"]),
)
def test_many_values_of_any_shape(seed: int, count: int, shape: str) -> None:
    rng = np.random.default_rng(seed)
    drawn = rng.lognormal(sigma=3, size=count)
    values = {
        "normal": np.abs(rng.normal(size=count)),
        "heavy": drawn,
        "sorted": np.sort(drawn),
        "falling": np.sort(drawn)[::-1].copy(),
        "steps": rng.integers(0, 4, count).astype(np.float64),
        "constant": np.full(count, 0.25),
    }[shape]
    assert percentiles(values, WANTED) == np.percentile(values, WANTED).tolist()


def test_a_sample_that_misleads_is_noticed() -> None:
    """Every value that is looked at first is far above all others."""
    count = 4 * FEW
    values = np.random.default_rng(0).random(count)
    values[:: count // SAMPLE] += 1000
    assert percentiles(values, WANTED) == np.percentile(values, WANTED).tolist()


@pytest.mark.parametrize("count", [10, 2 * FEW])
def test_infinity_is_a_value_and_nan_is_not(count: int) -> None:
    values = np.arange(count, dtype=np.float64)
    values[-count // 5 :] = math.inf
    p50, p95, p99 = percentiles(values, WANTED)
    assert p50 == np.percentile(np.arange(count), 50)
    assert p95 == p99 == math.inf
    values[3] = math.nan
    assert all(math.isnan(value) for value in percentiles(values, WANTED))
    assert math.isnan(percentiles(np.empty(0), WANTED)[0])
