"""The garbage collector rests where it would find nothing, and nowhere else."""

import gc
from collections.abc import Iterator

import pytest

from omni_rl.heap import uncollected


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    gc.enable()


def test_the_collector_rests_within_and_runs_again_whatever_happened() -> None:
    with pytest.raises(ZeroDivisionError), uncollected():
        assert gc.isenabled() or 1 / 0
    assert gc.isenabled()


def test_a_collector_that_somebody_has_switched_off_stays_off() -> None:
    gc.disable()
    with uncollected(), uncollected():
        pass
    assert not gc.isenabled()
