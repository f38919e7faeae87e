"""A task that cannot be run is refused by name, before anything is started."""

from pathlib import Path

import pytest

from omni_rl.errors import ConfigError
from omni_rl.tasks.settings import DIRECTORY, load_task

GOOD = 'prompts = "omni_rl.tasks.digits:load_digits"\nreward = "omni_rl.tasks.rewards:exact_digit"\n'


def test_the_operators_tasks_are_ready_to_use() -> None:
    task = load_task("digits")
    (prompt,) = task.prompts("held_out", [0])
    assert task.reward(str(prompt.answer), prompt.answer) == 1.0
    assert not task.shuffled
    assert load_task("digits-shuffled").shuffled


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD + "rewrad = 1\n", "rewrad"),
        (GOOD.replace("exact_digit", "no_such"), "no_such"),
        (GOOD.replace("omni_rl.tasks.rewards:", "os.system "), "reward"),
        (GOOD + 'media = ["audio"]\n', "'digit-0' has no audio"),
        ("prompts = ", "not TOML"),
    ],
    ids=["unknown-key", "no-such-name", "not-a-name", "lacking-media", "not-toml"],
)
def test_a_bad_task_is_refused(content: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.toml").write_text(content)
    monkeypatch.setenv(DIRECTORY, str(tmp_path))
    with pytest.raises(ConfigError, match=message):
        load_task("bad")


def test_an_unknown_task_is_told_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"there are: .*digits"):
        load_task("digit")
