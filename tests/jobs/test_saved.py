"""A run goes on from what it left, or says why not."""

from pathlib import Path

import pytest

from omni_rl.api.jobs import GrpoParameters
from omni_rl.errors import ConfigError
from omni_rl.jobs.saved import SavedSteps

PARAMETERS = GrpoParameters(run="digits", steps=20, save_every=5)


@pytest.fixture
def saved(tmp_path: Path) -> SavedSteps:
    steps = SavedSteps("digits", tmp_path)
    steps.begin("grpo", PARAMETERS)
    return steps


def test_a_run_goes_on_from_its_latest_whole_state(saved: SavedSteps, tmp_path: Path) -> None:
    for following in (5, 10):
        saved.path(following).mkdir()
    (tmp_path / "digits" / ".step-00000015.abc.partial").mkdir()
    longer = PARAMETERS.model_copy(update={"steps": 40, "resume": True, "save_every": 2})
    assert saved.resume("grpo", longer) == (10, saved.path(10))


def test_other_parameters_are_named(saved: SavedSteps) -> None:
    saved.path(5).mkdir()
    with pytest.raises(ConfigError, match=r"began with prompts 16 \(now 8\), group 8 \(now 4\)"):
        saved.resume("grpo", PARAMETERS.model_copy(update={"prompts": 8, "group": 4}))
    with pytest.raises(ConfigError, match="began with kind 'grpo'"):
        saved.resume("ppo", PARAMETERS)


def test_a_learning_rate_that_falls_over_all_steps_keeps_their_number(tmp_path: Path) -> None:
    falling = PARAMETERS.model_copy(update={"learning_rate_decay": 1.0})
    saved = SavedSteps("digits", tmp_path)
    saved.begin("grpo", falling)
    saved.path(5).mkdir()
    assert saved.resume("grpo", falling.model_copy(update={"resume": True})) == (5, saved.path(5))
    with pytest.raises(ConfigError, match=r"began with steps 20 \(now 40\)"):
        saved.resume("grpo", falling.model_copy(update={"steps": 40}))


def test_without_a_saved_step_there_is_nothing_to_resume(saved: SavedSteps) -> None:
    with pytest.raises(ConfigError, match="no saved step"):
        saved.resume("grpo", PARAMETERS)


def test_a_new_run_does_not_take_an_old_ones_place(saved: SavedSteps) -> None:
    saved.path(5).mkdir()
    with pytest.raises(ConfigError, match="choose another name, or resume it"):
        saved.begin("grpo", PARAMETERS)


def test_the_last_states_are_kept(saved: SavedSteps) -> None:
    for following in (5, 10, 15):
        saved.path(following).mkdir()
    saved.tidy()
    assert [saved.path(following).exists() for following in (5, 10, 15)] == [False, True, True]
