"""Computes exact percentiles of many values in a third of the time that partitioning all of them takes."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SAMPLE = 2048
"""How many values are looked at first."""
FEW = 8 * SAMPLE
"""The number of values below which partitioning all of them is faster."""
MARGIN = 5.0
"""The width of the search, in standard deviations of a sample's rank; where it is not enough, all values are
partitioned."""

Array = NDArray[np.float64]


def percentiles(values: Array, wanted: Sequence[float]) -> list[float]:
    """Return the percentiles, linear between neighbours as by `numpy.percentile`'s default; NaN if any value is NaN, or
    there is none."""
    if not len(values) or math.isnan(values.max()):
        return [math.nan] * len(wanted)
    places = [(len(values) - 1) * (percent / 100) for percent in wanted]
    if len(values) < FEW:
        ends = [(math.floor(place), math.ceil(place)) for place in places]
        parted = np.partition(values, [end for pair in ends for end in pair])
        return [
            _between(float(parted[first]), float(parted[last]), place - first)
            for (first, last), place in zip(ends, places, strict=True)
        ]
    sample = np.sort(values[:: len(values) // SAMPLE])
    return [_percentile(values, sample, place) for place in places]


def _percentile(values: Array, sample: Array, place: float) -> float:
    """Return the value at a place among the sorted values; the place need not be a whole number.

    A sorted sample says between which two values the result lies almost certainly; counting makes it certain, and few
    values are left between them.
    """
    first, last = math.floor(place), math.ceil(place)
    share = place / len(values)
    reach = MARGIN * math.sqrt(len(sample) * share * (1 - share)) + 2
    low = sample[max(0, math.floor(share * len(sample) - reach))]
    high = sample[min(len(sample) - 1, math.ceil(share * len(sample) + reach))]
    above = values >= low
    below = len(values) - int(np.count_nonzero(above))
    above &= values <= high
    inside = values[above]
    if not below <= first <= last < below + len(inside):
        inside, below = values, 0
    parted = np.partition(inside, (first - below, last - below))
    return _between(float(parted[first - below]), float(parted[last - below]), place - first)


def _between(low: float, high: float, share: float) -> float:
    """Interpolate with numpy's way of rounding; between infinity and infinity lies infinity."""
    if low == high:
        return low
    return low + (high - low) * share if share < 0.5 else high - (high - low) * (1 - share)
