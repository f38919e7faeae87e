"""`omni-rl judge`: files in, a verdict and a cause a step out, as the coordinator would have said."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from omni_rl.api.runs import RunBody
from omni_rl.cli import app
from omni_rl.client import Client
from omni_rl.errors import RecordError
from omni_rl.watch.readers.dumps import read_steps
from tests.services.live import live
from tests.watch.nemo_rl import Answer, clean_answers, dump

FLOAT32 = ("--dtype", "float32")


def judged(*arguments: str | Path) -> tuple[int, list[dict[str, Any]]]:
    done = CliRunner().invoke(app, ["judge", *map(str, arguments), "--json"])
    return done.exit_code, json.loads(done.stdout)["steps"]


def shifted(answer: Answer) -> Answer:
    """The trainer's logprobs one token late."""
    return replace(answer, train=[0.0, *answer.train[:-1]])


def test_a_run_that_is_well_is_ok(tmp_path: Path) -> None:
    for step in range(3):
        dump(tmp_path, step, clean_answers(step))
    code, steps = judged(tmp_path, *FLOAT32)
    assert code == 0
    assert [(step["step"], step["severity"]) for step in steps] == [(0, "ok"), (1, "ok"), (2, "ok")]
    assert steps[0]["files"] == [str(tmp_path / "train_data_step0.jsonl")]


def test_the_step_with_a_fault_is_named_with_its_cause(tmp_path: Path) -> None:
    dump(tmp_path, 1, clean_answers(1))
    dump(tmp_path, 2, [shifted(answer) for answer in clean_answers(2)])
    code, (first, second) = judged(tmp_path, *FLOAT32)
    assert code == 1
    assert first["severity"] == "ok"
    assert (second["severity"], second["cause"]) == ("pause", "token_shift")


def test_the_older_formats_are_judged_and_say_so(tmp_path: Path) -> None:
    dump(tmp_path, 1, clean_answers(1), "0.3")
    code, (step,) = judged(tmp_path, *FLOAT32)
    assert (code, step["severity"]) == (0, "ok")
    assert "before 0.6" in step["notes"][0]
    done = CliRunner().invoke(app, ["judge", str(tmp_path), *FLOAT32])
    assert done.stdout.startswith("step 1     ok ")
    assert "before 0.6" in done.stderr


def test_too_few_tokens_are_no_ok(tmp_path: Path) -> None:
    dump(tmp_path, 1, [Answer(2, [-1.0], [-1.0])])
    code, (step,) = judged(tmp_path)
    assert (code, step["severity"]) == (1, "unjudged")


def test_it_says_what_the_coordinator_says(tmp_path: Path) -> None:
    steps = [clean_answers(n) for n in range(4)]
    steps[2] = [shifted(answer) for answer in steps[2]]
    files = tmp_path / "files"
    files.mkdir()
    for number, answers in enumerate(steps):
        dump(files, number, answers)
    _, told = judged(files, *FLOAT32)
    with live(tmp_path) as url, Client(url) as client:
        client.create_run(RunBody(run="judged", model="model", dtype="float32"))
        for step, alone in zip(read_steps([files]), told, strict=True):
            client.put_part("judged", 1, step.step, 0, step.parts[0])
            sealed = client.seal("judged", 1, step.step).verdict.model_dump(mode="json")
            for name in (
                "severity",
                "reason",
                "cause",
                "sentence",
                "evidence",
                "breaches",
                "drift",
                "figures",
                "worst",
            ):
                assert alone[name] == sealed[name], (step.step, name)


def test_bad_input_ends_with_one_line_and_code_2(tmp_path: Path) -> None:
    def refused(*arguments: str) -> str:
        command = [sys.executable, "-m", "omni_rl", "judge", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        return line

    assert "error [invalid_records]: gone.jsonl cannot be read: No such file or directory" in refused("gone.jsonl")
    path = dump(tmp_path, 1, clean_answers(1))
    path.write_text(path.read_text() + "{\n")
    assert "train_data_step1.jsonl, line 17: not JSON" in refused(path.name)


def test_a_dump_comes_through_a_pipe_as_from_a_file(tmp_path: Path) -> None:
    answers = [shifted(answer) for answer in clean_answers(2)]
    path = dump(tmp_path, 2, answers)
    command = [sys.executable, "-m", "omni_rl", "judge", *FLOAT32]
    of_file = subprocess.run([*command, str(path)], capture_output=True, text=True)
    piped = subprocess.run([*command, "-"], input=path.read_text(), capture_output=True, text=True)
    assert of_file.returncode == piped.returncode == 1, piped.stderr
    assert "token_shift" in piped.stdout
    # The file's name had the step's number.
    assert piped.stdout.replace("step 0", "step 2") == of_file.stdout
    fifo = subprocess.run(
        ["bash", "-c", f"{' '.join(command)} <(cat {path})"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (fifo.returncode, "token_shift" in fifo.stdout) == (1, True), fifo.stderr


def test_nothing_and_places_without_dumps_are_told_in_a_line(tmp_path: Path) -> None:
    def refused(argument: str, given: str = "") -> str:
        command = [sys.executable, "-m", "omni_rl", "judge", argument]
        done = subprocess.run(command, cwd=tmp_path, input=given, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        return line

    assert "standard input is empty" in refused("-")
    assert "standard input, line 1: not JSON" in refused("-", "no dump\n")
    (tmp_path / "empty.jsonl").touch()
    assert "empty.jsonl is empty" in refused("empty.jsonl")
    (tmp_path / "logs" / "exp_001").mkdir(parents=True)
    assert "logs has no train_data_step*.jsonl, nor any file of" in refused("logs")
    dump(tmp_path / "logs" / "exp_001", 1, clean_answers(1))
    assert refused("logs").endswith("logs/exp_001 has")


def test_false_zeros_raise_no_alarm(tmp_path: Path) -> None:
    dump(tmp_path, 1, [replace(answer, train=[0.0] * len(answer.train), prompt=1) for answer in clean_answers(1)])
    with pytest.raises(RecordError, match="force_on_policy_ratio"):
        CliRunner().invoke(app, ["judge", str(tmp_path)], catch_exceptions=False)
