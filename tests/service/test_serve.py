"""`omni-rl serve`, in a process of its own: what it prints, who may do what, and how it ends."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from omni_rl.api.runs import RunBody
from omni_rl.api.state import Scope
from omni_rl.cli import main
from omni_rl.client import Client
from omni_rl.client.retries import Retries
from omni_rl.commands.service import connect
from omni_rl.errors import CoordinatorUnreachableError, UnauthenticatedError
from omni_rl.service.tokens import add_token
from omni_rl.watch.table import step_rows

COMMAND = [sys.executable, "-m", "omni_rl", "serve"]
OF_THE_RUN = re.compile(r"OMNI_RL_URL=(\S+) OMNI_RL_TOKEN_FILE=(\S+)")
ONCE = Retries(attempts=1)


@dataclass
class Serving:
    """A server that answers; `printed` is all it has said so far, errors included."""

    process: subprocess.Popen[str]
    url: str = ""
    token_file: Path = Path()
    printed: list[str] = field(default_factory=list)

    def client(self) -> Client:
        return Client(self.url, self.token_file.read_text(), retries=ONCE)

    def interrupt(self) -> int:
        """The exit code after Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(30)


@contextlib.contextmanager
def serving(cwd: Path, *arguments: str, **variables: str) -> Iterator[Serving]:
    bare = {name: value for name, value in os.environ.items() if not name.startswith("OMNI_RL_")}
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=cwd,
        env={**bare, "PYTHONUNBUFFERED": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    served = Serving(process)
    try:
        for line in process.stdout:
            served.printed.append(line)
            if (found := OF_THE_RUN.search(line)) is not None:
                served.url, served.token_file = found[1], Path(found[2])
                break
        else:
            raise AssertionError(f"it did not start: {served.printed}")
        # Whatever else it prints is read, so that it never waits for a full pipe.
        reader = threading.Thread(target=served.printed.extend, args=(process.stdout,))
        reader.start()
        try:
            yield served
        finally:
            process.kill()
            reader.join()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def judge_a_step(client: Client) -> str:
    client.create_run(RunBody(run="mine", model="a model", dtype="float32", framework="my own"))
    rollout = np.full((2, 8), -1.0)
    records = step_rows({"rollout_logprobs": rollout, "train_logprobs": rollout + 1e-7})
    client.put_part("mine", 1, 0, 0, records)
    return client.seal("mine", 1, 0, parts=1).verdict.severity


def test_it_is_ready_judges_and_ends_on_ctrl_c(tmp_path: Path) -> None:
    with serving(tmp_path, "--port", "0") as served:
        assert served.token_file == tmp_path / "runs/serve/tokens/owner"
        assert served.token_file.stat().st_mode & 0o777 == 0o600
        with served.client() as client:
            assert client.ready().ready
            assert not client.state().cluster.expected
            assert judge_a_step(client) == "ok"
        with Client(served.url, retries=ONCE) as nobody, pytest.raises(UnauthenticatedError):
            nobody.runs()
        assert served.interrupt() == 0
    printed = "".join(served.printed)
    assert printed.splitlines()[0].startswith(f"omni-rl at {served.url} ")
    assert printed.splitlines()[-1].startswith("stopped")
    assert served.token_file.read_text() not in printed
    assert "Traceback" not in printed
    with serving(tmp_path, "--port", "0") as again, again.client() as client:
        assert [run.run for run in client.runs()] == ["mine"]


@pytest.mark.slow
def test_commands_find_it_by_its_directory(tmp_path: Path) -> None:
    with serving(tmp_path, "--port", "0"):
        status = [sys.executable, "-m", "omni_rl", "status", "--directory", "runs/serve"]
        done = subprocess.run(status, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cluster    none" in done.stdout


@pytest.mark.slow
def test_what_cannot_be_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each refusal is the command's own, in this process; that of a taken port and the last are a process's too."""
    monkeypatch.chdir(tmp_path)

    def refused(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["omni-rl", "serve", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return one_line(ended.value.code, out, err)

    def refused_by_a_process(*arguments: str) -> str:
        done = subprocess.run([*COMMAND, *arguments], cwd=tmp_path, capture_output=True, text=True)
        return one_line(done.returncode, done.stdout, done.stderr)

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"port {port} of 127.0.0.1 is taken" in refused_by_a_process("--port", str(port))
    assert "neither sqlite nor postgresql" in refused("--ledger", "mysql://me:secret@elsewhere/x")
    nobody = refused("--port", "0", "--ledger", "postgresql://me:secret@127.0.0.1:1/x")
    assert "ledger_failed" in nobody
    assert "secret" not in nobody
    assert "together" in refused("--tls-key", "key.pem")
    assert "are no certificate and its key" in refused("--tls-key", "key.pem", "--tls-certificate", "certificate.pem")
    (tmp_path / "token").write_text("guess me")
    assert "a token of 8 characters" in refused("--token-file", "token")
    assert "port" in refused("--port", "70000")
    assert "token cannot be made" in refused("--port", "0", "--directory", "token")
    with serving(tmp_path, "--port", "0") as served:
        line = refused_by_a_process("--port", "0")
        assert f"process {served.process.pid} serves {tmp_path}/runs/serve already" in line
        with served.client() as client:
            assert client.ready().ready


def one_line(code: str | int | None, out: str, err: str) -> str:
    """What a command that was refused says: one line, and nothing on its standard output."""
    assert code == 2
    assert out == ""
    (line,) = err.splitlines()
    return line


def test_flags_come_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    (tmp_path / "serve.toml").write_text('[serve]\nport = 1\nhost = "127.0.0.2"\ndirectory = "by-file"\n')
    variables = {"OMNI_RL_SERVE__PORT": "0", "OMNI_RL_SERVE__DIRECTORY": "by-environment"}
    with serving(tmp_path, "--config", "serve.toml", "--directory", "by-flag", **variables) as served:
        assert served.url.startswith("http://127.0.0.2:")
        assert served.token_file == tmp_path / "by-flag/tokens/owner"


def test_a_token_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, directory = tmp_path / "secret", tmp_path / "runs/serve"
    own.write_text("0123456789abcdef\n")
    for name in ("OMNI_RL_TOKEN", "OMNI_RL_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    with serving(tmp_path, "--port", "0", "--token-file", "secret") as served:
        assert served.token_file == own
        with Client(served.url, "0123456789abcdef") as client:
            assert client.whoami().name == "owner"
        # A command that asks it by its directory makes no token there: the owner's is the environment's.
        with connect(directory) as client, pytest.raises(UnauthenticatedError):
            client.state()
        monkeypatch.setenv("OMNI_RL_TOKEN_FILE", str(own))
        with connect(directory) as client:
            assert client.whoami().name == "owner"
        assert not (directory / "tokens").exists()
        # Tokens that are made beside it count at once, the directory's first one too.
        with Client(served.url, add_token(directory, "ann", Scope.READ).read_text(), retries=ONCE) as client:
            assert client.whoami().name == "ann"


def test_other_machines_reach_it_with_a_token_alone(tmp_path: Path) -> None:
    with serving(tmp_path, "--port", "0", "--host", "0.0.0.0") as served:
        assert any("plain HTTP" in line for line in served.printed)
        assert f"//{socket.gethostname()}:" in served.url
        port = served.url.rpartition(":")[2]
        with Client(f"http://127.0.0.1:{port}", retries=ONCE) as client, pytest.raises(UnauthenticatedError):
            client.runs()


def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        [*make.split(), "-keyout", "key", "-out", "certificate"], cwd=tmp_path, check=True, capture_output=True
    )
    with serving(tmp_path, "--port", "0", "--tls-certificate", "certificate", "--tls-key", "key") as served:
        assert served.url.startswith("https://127.0.0.1:")
        with served.client() as client, pytest.raises(CoordinatorUnreachableError, match="OMNI_RL_CA_FILE"):
            client.ready()
        plain = served.url.replace("https", "http")
        with Client(plain, retries=ONCE) as client, pytest.raises(CoordinatorUnreachableError, match="speaks https"):
            client.ready()
        monkeypatch.setenv("OMNI_RL_CA_FILE", str(tmp_path / "certificate"))
        with served.client() as client:
            assert judge_a_step(client) == "ok"


@pytest.mark.slow
def test_either_database_keeps_the_steps(tmp_path: Path, ledger_url: str) -> None:
    for steps in (0, 1):
        with serving(tmp_path, "--port", "0", OMNI_RL_SERVE__LEDGER=ledger_url) as served, served.client() as client:
            assert len(client.runs()) == steps
            assert judge_a_step(client) == "ok"
        assert not (tmp_path / "runs/serve/ledger.db").exists()
