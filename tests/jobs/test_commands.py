"""What is wrong with a job is said before anything is asked or started."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from omni_rl.api.steps import StepLine
from omni_rl.cli import app
from omni_rl.commands import jobs
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


ENDS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from omni_rl import cli
from omni_rl.errors import TrainerDeadError
from omni_rl.jobs import command

def run_job(parameters, tell):
    ThreadPoolExecutor(1).submit(Event().wait)  # an answer that comes when the gate opens
    raise TrainerDeadError("rank 0 died") if dies else KeyboardInterrupt

command.run_job = run_job
dies = sys.argv[1] == "dies"
sys.argv[1:] = ["run", "grpo", "--parameters", '{"run": "digits"}']
cli.main()
"""


@pytest.mark.parametrize(
    ("how", "code", "told"), [("dies", 2, "error [trainer_dead]: rank 0 died"), ("ctrl-c", 130, "")]
)
def test_a_job_that_fails_while_the_gate_is_closed_ends(how: str, code: int, told: str) -> None:
    ended = subprocess.run([sys.executable, "-c", ENDS, how], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr.strip()) == (code, told)


class ManySteps:
    """A client of a coordinator that gives three steps at a time."""

    def steps(self, run: str, attempt: int | None = None, after: int = -1) -> list[StepLine]:
        assert attempt in (None, 2)
        return [
            StepLine.model_construct(attempt=2, step=step, severity="ok", training={}, figures={})
            for step in range(after + 1, min(after + 4, 8))
        ]


def test_a_plot_has_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def connected(directory: Path | None) -> Iterator[ManySteps]:
        yield ManySteps()

    def draw(run: str, steps: list[StepLine]) -> str:
        drawn.extend(one.step for one in steps)
        return "<svg/>"

    drawn: list[int] = []
    monkeypatch.setattr(jobs, "connect", connected)
    monkeypatch.setattr("omni_rl.jobs.plot.plot", draw)
    result = CliRunner().invoke(app, ["plot", "digits", "--out", str(tmp_path / "plot.svg")])
    assert result.exit_code == 0
    assert drawn == list(range(8))


def test_a_file_that_is_no_utf8_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_bytes('run = "gr\xf6\xdfe"'.encode("latin-1"))
    result = CliRunner().invoke(app, ["submit", "grpo", "--config", str(path)])
    assert isinstance(result.exception, ConfigError)
    assert "job.toml is not TOML" in str(result.exception)
