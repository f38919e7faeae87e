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


def test_signs_become_dashes() -> None:
    assert fitting_run_name("team/exp 1") == "team-exp-1"


@pytest.mark.parametrize(
    "names",
    [
        ("実験", "模型", "...", "/"),
        ("実験1", "模型1"),
        ("größe", "große", "gro-e"),
        tuple("outputs/" + "long" * 20 + end for end in ("a", "b")),
    ],
)
def test_runs_that_differ_in_what_does_not_fit_are_told_apart(names: tuple[str, ...]) -> None:
    assert len({fitting_run_name(name) for name in names}) == len(names)
    assert [fitting_run_name(name) for name in names] == [fitting_run_name(name) for name in names]
