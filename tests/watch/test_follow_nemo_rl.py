"""NeMo RL's runs: the files of each release followed while another process writes them, and the logger wrapped."""

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omni_rl_services.coordinator.auth import new_token
from omni_rl_services.coordinator.settings import TokenEntry
from typer.testing import CliRunner

from omni_rl.api.runs import RunBody
from omni_rl.api.state import Scope
from omni_rl.cli import app
from omni_rl.client import Client
from omni_rl.errors import ConfigError
from omni_rl.watch.follow_nemo_rl import FULL, Files, Following, latest
from omni_rl.watch.nemo_rl import watch
from omni_rl.watch.place import PostingRank
from omni_rl.watch.readers.nemo_rl import USED
from omni_rl.watch.watcher import Watcher
from tests.services.live import live
from tests.watch.nemo_rl import RELEASES, Answer, clean_answers, dump, line

APPEND = """
import sys, time
path, lines, pause = sys.argv[1], sys.stdin.read().splitlines(keepends=True), float(sys.argv[2])
with open(path, "w") as file:
    for line in lines:
        for half in (line[:50], line[50:]):
            file.write(half)
            file.flush()
            time.sleep(pause)
"""


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with live(tmp_path) as address:
        yield address


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    directory = tmp_path / "logs/exp_001"
    directory.mkdir(parents=True)
    return directory


def following(url: str, logs: Path, said: list[str], **options: Any) -> Following:
    def watching(attempt: int | None) -> Watcher:
        return Watcher(run="nemo", dtype="float32", url=url, attempt=attempt, place=PostingRank(0, 1), timeout=60)

    return Following(logs, watching, said.append, **options)


def sealed(url: str, attempt: int = 1) -> list[tuple[int, str, int]]:
    with Client(url) as client:
        return [(line.step, line.severity, line.samples) for line in client.steps("nemo", attempt=attempt)]


@pytest.mark.parametrize("release", RELEASES)
def test_files_of_each_release_are_followed_while_they_are_written(url: str, logs: Path, release: str) -> None:
    """The writer is another process, which writes in pieces of lines: no step is taken before it is whole."""
    steps = 3
    done = threading.Event()

    def write() -> None:
        for step in range(1, steps + 1):
            lines = "".join(line(answer, n, release) for n, answer in enumerate(clean_answers(step)))
            command = [sys.executable, "-c", APPEND, str(logs / f"train_data_step{step}.jsonl"), "0.002"]
            subprocess.run(command, input=lines, text=True, check=True)
        done.set()

    writer = threading.Thread(target=write)
    said: list[str] = []
    writer.start()
    lost = following(url, logs, said, settle=3600.0).run(None, done.is_set)
    writer.join()
    assert lost == 0
    assert sealed(url) == [(step, "ok", 16) for step in range(1, steps + 1)]
    assert len(said) == (release < "0.6")


def test_it_goes_on_after_what_the_coordinator_has(url: str, logs: Path) -> None:
    for step in (1, 2):
        dump(logs, step, clean_answers(step))
    assert following(url, logs, []).run(None, lambda: True) == 0
    dump(logs, 3, clean_answers(3))
    with Client(url) as client:
        assert latest(client, "other") is None
        found = latest(client, "nemo")
    assert found == (1, 2)
    assert following(url, logs, []).run(found, lambda: True) == 0
    assert [step for step, _, _ in sealed(url)] == [1, 2, 3]


def test_a_run_that_is_taken_up_again_is_a_new_attempt(url: str, logs: Path) -> None:
    ends = iter([False, True])

    def ended() -> bool:
        over = next(ends)
        if over:
            dump(logs, 2, clean_answers(22, count=8))
            os.utime(logs / "train_data_step2.jsonl", ns=(2**62, 2**62))
        return over

    for step in (1, 2, 3):
        os.utime(dump(logs, step, clean_answers(step)), ns=(step, step))
    assert following(url, logs, [], settle=0.0).run(None, ended) == 0
    assert [step for step, _, _ in sealed(url)] == [1, 2, 3]
    assert sealed(url, attempt=2) == [(2, "ok", 8)]


def test_what_cannot_be_read_is_said_once_and_the_rest_goes_on(url: str, logs: Path) -> None:
    zeros = [replace(answer, train=[0.0] * len(answer.train), prompt=1) for answer in clean_answers(1)]
    for step in (1, 2):
        dump(logs, step, zeros)
    dump(logs, 3, clean_answers(3))
    said: list[str] = []
    assert following(url, logs, said).run(None, lambda: True) == 2
    assert len(said) == 1
    assert "force_on_policy_ratio" in said[0]
    assert [step for step, _, _ in sealed(url)] == [3]


def test_a_file_is_whole_when_it_rests_or_the_next_is_begun(logs: Path) -> None:
    now = [0.0]
    files = Files(logs, 5.0, lambda: now[0])

    def told() -> list[int]:
        return [step for step, _ in files.whole()]

    one = dump(logs, 1, clean_answers(1))
    os.utime(one, ns=(1, 1))
    assert told() == []
    now[0] = 4.9
    assert told() == []
    now[0] = 5.0
    assert told() == [1]
    assert told() == []
    two = logs / "train_data_step2.jsonl"
    two.write_text(one.read_text() + '{"half')
    os.utime(two, ns=(2, 2))
    assert told() == []
    now[0] = 100.0
    assert told() == []
    (logs / "train_data_step3.jsonl").write_text("")
    assert told() == [2]


@pytest.mark.parametrize("happens", [lambda path: path.write_text(""), Path.unlink])
def test_a_file_that_is_emptied_or_gone_since_it_was_listed_is_not_whole(
    logs: Path, happens: Callable[[Path], object]
) -> None:
    path = dump(logs, 1, clean_answers(1))

    def clock() -> float:
        """Asked between the look at the file's size and the look into the file."""
        happens(path)
        return 0.0

    assert list(Files(logs, 0.0, clock).whole()) == []


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("steps", [1, FULL + 1])
def test_where_nothing_can_be_posted_it_ends_and_says_why(url: str, logs: Path, steps: int, once: bool) -> None:
    for step in range(steps):
        dump(logs, step, clean_answers(step, count=1))
    with Client(url) as client:
        client.create_run(RunBody(run="nemo", model="model", dtype="bfloat16"))
    with pytest.raises(ConfigError, match=r"nothing can be posted: .*OMNI_RL_RUN names the run"):
        following(url, logs, [], settle=0.0).run(None, lambda: once)


def test_a_token_that_may_only_read_ends_the_command(
    tmp_path: Path, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, kept = new_token()
    for step in range(FULL + 1):
        dump(logs, step, clean_answers(step, count=1))
    with live(tmp_path, tokens=(TokenEntry(name="reader", scope=Scope.READ, sha256=kept),)) as url:
        monkeypatch.setenv("OMNI_RL_URL", url)
        monkeypatch.setenv("OMNI_RL_TOKEN", token)
        done = CliRunner().invoke(app, ["watch", "nemo-rl", str(logs), "--settle", "0"])
    assert done.exit_code != 0
    assert isinstance(done.exception, ConfigError)


@pytest.mark.parametrize(
    ("error", "activity"), [(OSError("a disk that is gone"), "live"), (KeyboardInterrupt(), "ended")]
)
def test_a_run_is_over_where_the_follower_is_ended_and_not_where_it_fails(
    url: str, logs: Path, error: BaseException, activity: str
) -> None:
    looks = iter([False])

    def ended() -> bool:
        if (over := next(looks, None)) is None:
            raise error
        return over

    dump(logs, 1, clean_answers(1))
    with pytest.raises(type(error)):
        following(url, logs, [], settle=0.0).run(None, ended)
    with Client(url) as client:
        assert (client.run("nemo").step, client.run("nemo").activity) == (1, activity)


def test_a_directory_of_experiments_names_the_latest(logs: Path) -> None:
    (logs.parent / "exp_002").mkdir()
    with pytest.raises(ConfigError, match="exp_002 is the latest"):
        list(Files(logs.parent, 5.0).whole())
    assert list(Files(logs.parent / "not yet", 5.0).whole()) == []


def test_the_command_posts_what_is_there_and_ends(url: str, logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_RL_URL", url)
    for step in (1, 2):
        dump(logs, step, clean_answers(step))
    command = ["watch", "nemo-rl", str(logs), "--dtype", "float32", "--once"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    first, *verdicts = done.stdout.splitlines()
    assert first == f"run logs-exp_001, from {logs}"
    assert [text.split()[:3] for text in verdicts] == [["step", "1", "ok"], ["step", "2", "ok"]]
    dump(logs, 3, [replace(answer, train=[0.0, *answer.train[:-1]]) for answer in clean_answers(3)])
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert "after step 2" in done.stdout
    assert "token_shift" in done.stdout


class NemoLogger:
    """Writes as NeMo RL's does: slices of one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def log_batched_dict_as_jsonl(self, to_log: Any, filename: str) -> None:
        count = len(to_log["input_lengths"])
        rows = [{name: [column[n]] for name, column in to_log.items()} for n in range(count)]
        (self.directory / filename).write_text(
            "".join(json.dumps({**row, "idx": n}) + "\n" for n, row in enumerate(rows))
        )


def batch(answers: list[Answer], release: str) -> dict[str, Any]:
    """The columns that the logger is given."""
    rows = [json.loads(line(answer, n, release)) for n, answer in enumerate(answers)]
    return {name: [row[name][0] for row in rows] for name in rows[0] if name in (*USED, "content")}


def posted(logger: NemoLogger, url: str, write: Callable[[], None]) -> None:
    with contextlib.closing(watch(logger, run="nemo", dtype="float32", url=url)):
        write()


@pytest.mark.parametrize("release", RELEASES)
def test_one_line_wraps_the_logger(url: str, logs: Path, release: str) -> None:
    logger = NemoLogger(logs)

    def write() -> None:
        logger.log_batched_dict_as_jsonl(batch(clean_answers(7), release), "val_data_step7.jsonl")
        logger.log_batched_dict_as_jsonl(batch(clean_answers(7), release), "train_data_step7.jsonl")

    posted(logger, url, write)
    assert sealed(url) == [(7, "ok", 16)]
    assert {path.name for path in logs.iterdir()} == {"train_data_step7.jsonl", "val_data_step7.jsonl"}


def test_what_goes_wrong_never_reaches_the_run(url: str, logs: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = NemoLogger(logs)
    wrong = batch(clean_answers(1), "0.7")
    wrong["prev_logprobs"] = [["high"] * 48] * 16

    def write() -> None:
        for step in (1, 2):
            logger.log_batched_dict_as_jsonl(wrong, f"train_data_step{step}.jsonl")
        logger.log_batched_dict_as_jsonl(batch(clean_answers(3), "0.7"), "train_data_step3.jsonl")

    with caplog.at_level(logging.WARNING, "omni_rl.watch"):
        posted(logger, url, write)
    assert [step for step, _, _ in sealed(url)] == [3]
    assert ["prev_logprobs is ['high'" in record.getMessage() for record in caplog.records] == [True]
