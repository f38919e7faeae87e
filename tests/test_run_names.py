"""A run's name as the coordinator takes it, whatever the run was called."""

import re

import pytest

from omni_rl.api.base import NAME
from omni_rl.run_names import fitting_run_name


@pytest.mark.parametrize(
    "name",
    ["mine", "team/exp 1", "実験", "実験/7", "...", " ", "a" * 65, "outputs/" + "long" * 20, "run\udcff", "\udcff"],
)
def test_whatever_a_run_is_called_the_coordinator_takes_the_name(name: str) -> None:
    assert re.fullmatch(NAME, fitting_run_name(name))


@pytest.mark.parametrize("name", ["mine", "0", "digits-", "v1.2_b", "a" * 64])
def test_a_name_that_fits_stays_as_it_is(name: str) -> None:
    assert fitting_run_name(name) == name


def test_runs_of_which_no_letter_fits_are_told_apart() -> None:
    assert fitting_run_name("team/exp 1") == "team-exp-1"
    assert fitting_run_name("実験") == fitting_run_name("実験")
    assert len({fitting_run_name(name) for name in ("実験", "模型", "...", "/")}) == 4
