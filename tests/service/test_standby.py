"""A coordinator that waits for another one's end, and goes on in its place."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from omni_rl.client import Client
from omni_rl.errors import TakenOverError
from omni_rl.watch.table import step_rows
from tests.ledger.locks import lose_locks
from tests.service.test_serve import COMMAND, ONCE, Serving, judge_a_step, serving


def post(client: Client, step: int) -> None:
    rollout = np.full((2, 8), -1.0)
    client.put_part("mine", 1, step, 0, step_rows({"rollout_logprobs": rollout, "train_logprobs": rollout + 1e-7}))
    client.seal("mine", 1, step, parts=1)


@pytest.mark.slow
def test_a_second_coordinator_of_a_ledger_is_refused_in_one_line(tmp_path: Path, ledger_url: str) -> None:
    with serving(tmp_path, "--port", "0", "--ledger", ledger_url, "--directory", "one") as first:
        command = [*COMMAND, "--port", "0", "--ledger", ledger_url, "--directory", "two"]
        second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert second.returncode == 2
        assert f"process {first.process.pid}" in second.stderr
        assert "keeps the runs" in second.stderr
        assert "Traceback" not in second.stderr


@pytest.mark.slow
def test_a_standby_goes_on_where_the_first_was_killed(tmp_path: Path, ledger_url: str) -> None:
    with serving(tmp_path, "--port", "0", "--ledger", ledger_url, "--directory", "one") as first:
        with first.client() as client:
            judge_a_step(client)
            post(client, 1)
        with standby(tmp_path, ledger_url, first) as second:
            first.process.send_signal(signal.SIGKILL)
            with second() as client:
                post(client, 2)
                assert steps(client) == [0, 1, 2]


@pytest.mark.slow
def test_one_that_slept_through_a_takeover_says_so_and_writes_nothing(tmp_path: Path, ledger_url: str) -> None:
    with serving(tmp_path, "--port", "0", "--ledger", ledger_url, "--directory", "one") as first:
        with first.client() as client:
            judge_a_step(client)
        with standby(tmp_path, ledger_url, first) as second:
            first.process.send_signal(signal.SIGSTOP)
            lose_locks(ledger_url)
            with second() as client:
                post(client, 1)
                first.process.send_signal(signal.SIGCONT)
                with first.client() as late:
                    with pytest.raises(TakenOverError, match="took over"):
                        post(late, 2)
                    assert "took over" in (late.ready().reason or "")
                assert steps(client) == [0, 1]
                assert client.ready().ready


@contextlib.contextmanager
def standby(cwd: Path, ledger: str, first: Serving) -> Iterator[Callable[[], Client]]:
    """A second coordinator that waits for the first; what is given waits until it answers, and is a client of it."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("OMNI_RL_")}
    process = subprocess.Popen(
        [*COMMAND, "--port", "0", "--ledger", ledger, "--directory", "two", "--standby"],
        cwd=cwd,
        env={**bare, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            said = process.stdout
            assert f"standby: process {first.process.pid}" in said.readline()
            yield lambda: Client(said.readline().split()[2], (cwd / "two/tokens/owner").read_text(), retries=ONCE)
        finally:
            process.kill()


def steps(client: Client) -> list[int]:
    return [row.step for row in client.steps("mine", attempt=1)]
