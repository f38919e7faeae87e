"""A small part of `omni-rl bench judging`: nothing is told of steps where nothing is wrong."""

from itertools import islice

import pytest

from omni_rl.consistency.limits import Severity
from omni_rl_bench.judging.command import judge_run, shapes
from omni_rl_bench.judging.policies import Run, Shape

SMALL = 8_192
"""Tokens of a step, about, at most."""


def test_a_lag_that_a_run_states_is_not_told_once_its_own_noise_is_known() -> None:
    """A step is as often above the mean of the run's clean steps as below."""
    for tokens in (4, 64):
        told = judge_run(Shape("bfloat16", 16, tokens, lag=2), 3, 40)
        assert (told.sentences, told.caused) == ([], 0)


@pytest.mark.parametrize("sort", range(4))
def test_clean_steps_of_every_shape_are_ok(sort: int) -> None:
    for number, shape in enumerate(islice(shapes(), 20 * sort, 20 * (sort + 1))):
        if shape.answers * shape.tokens <= SMALL:
            told = judge_run(shape, 700 + 20 * sort + number, 3)
            assert (told.sentences, told.caused, told.worst <= Severity.OK) == ([], 0, True), shape


def test_the_shapes_are_those_that_real_runs_have() -> None:
    some = list(islice(shapes(), 100))
    assert {shape.dtype for shape in some} == {"float32", "bfloat16"}
    assert {shape.ranks for shape in some} == {1, 2}
    assert {min(shape.answers for shape in some), max(shape.answers for shape in some)} == {8, 5000}
    for what in ("tools", "dropped", "sure", "kept_in_bfloat16", "lag"):
        assert any(getattr(shape, what) for shape in some), what


def test_two_ranks_name_their_answers_alike() -> None:
    one, other = Run(Shape("bfloat16", 32, 8, ranks=2), 0).step()
    assert [row["sample"] for row in one] == [row["sample"] for row in other]
