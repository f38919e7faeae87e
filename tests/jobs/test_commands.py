"""What is wrong with a job is said before anything is asked or started."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from omni_rl.cli import app
from omni_rl.errors import ConfigError

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits-grpo.toml"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["submit", "sft"], "there are grpo and ppo"),
        (["submit", "grpo", "--set", "run=a", "--set", "learning_rat=1"], "learning_rat: Extra inputs"),
        (["submit", "grpo", "--set", "run=a", "--set", "group=1"], "group: Input should be greater"),
        (["submit", "ppo", "--config", str(EXAMPLE)], "group: Extra inputs"),
        (["submit", "grpo", "--set", "run"], "write name=value"),
        (["run", "grpo", "--parameters", "{"], "not JSON"),
        (["run", "grpo", "--parameters", '{"run": "a", "task": "no-such"}'], "no task 'no-such'"),
    ],
)
def test_a_bad_job_is_refused_by_name(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)


def test_the_examples_job_is_right(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["submit", "grpo", "--config", str(EXAMPLE), "--set", "steps=3", "--directory", str(tmp_path)]
    )
    assert "no service was started" in str(result.exception)
