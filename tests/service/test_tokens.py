"""Tokens of a service as its operator makes them: files of its own directory alone, which count at once."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from omni_rl_services.coordinator.auth import hash_token
from omni_rl_services.coordinator.settings import TokenEntry

from omni_rl.api.state import Scope
from omni_rl.client import Client
from omni_rl.client.retries import Retries
from omni_rl.errors import ConfigError, UnauthenticatedError
from omni_rl.service.tokens import HASHES, add_token, owner_token, remove_token
from tests.services.live import live

KILLED = """
import os, sys
from itertools import count
from pathlib import Path

from omni_rl.api.state import Scope
from omni_rl.service.tokens import add_token, owner_token, remove_token

ALTERS = ("open", "os.mkdir", "os.rename", "os.remove")

def die_at(operation):
    def look(event, arguments):
        nonlocal operation
        if event in ALTERS and (isinstance(arguments[0], int) or str(directory) in str(arguments[0])):
            operation -= 1
            if operation < 0:
                os._exit(9)  # nothing is flushed, as by SIGKILL

    sys.addaudithook(look)

for number in count():
    directory = Path(sys.argv[1], str(number))
    directory.mkdir()
    if sys.argv[2] != "owner":
        owner_token(directory)
    if sys.argv[2] == "remove":
        add_token(directory, "ann", Scope.READ)
    if (child := os.fork()) == 0:
        die_at(number)
        match sys.argv[2]:
            case "owner":
                owner_token(directory)
            case "add":
                add_token(directory, "ann", Scope.READ)
            case "remove":
                remove_token(directory, "ann")
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
"""
"""Does one thing in a directory after another, and is killed in each one file operation later, until it is not."""


@pytest.mark.parametrize("name", ["../../x y", "..", ".hidden", "a/b", "", "a" * 65, "two words", "a\n"])
def test_a_name_that_would_leave_the_directory_makes_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="token name"):
        add_token(tmp_path / "service", name, Scope.READ)
    assert not list(tmp_path.rglob("*"))


def test_a_token_counts_while_the_coordinator_runs_and_no_longer_once_it_is_removed(tmp_path: Path) -> None:
    directory = tmp_path / "service"
    owner = owner_token(directory).read_text()
    with live(tmp_path, tokens_file=directory / HASHES) as url:
        ann = add_token(directory, "ann", Scope.READ)
        secret = ann.read_text()
        assert ann.stat().st_mode & 0o777 == 0o600
        with Client(url, secret, retries=Retries(attempts=1)) as client, httpx.Client(base_url=url) as browser:
            assert client.whoami().name == "ann"
            assert browser.post("/v1/session", json={"token": secret}).status_code == 200
            assert browser.get("/v1/session").json()["name"] == "ann"
            remove_token(directory, "ann")
            with pytest.raises(UnauthenticatedError):
                client.whoami()
            assert browser.get("/v1/session").status_code == 401
        with Client(url, owner) as client:
            assert client.whoami().scope is Scope.ADMIN
    assert not ann.exists()


def test_a_tokens_file_that_cannot_be_used_changes_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "service"
    owner = owner_token(directory).read_text()
    with live(tmp_path, tokens_file=directory / HASHES) as url, Client(url, owner) as client:
        (directory / HASHES).write_text("{")
        assert client.whoami().name == "owner"


def test_the_last_token_beside_one_of_the_operators_own_is_renewed_as_its_refusal_says(tmp_path: Path) -> None:
    directory, own = tmp_path / "service", TokenEntry(name="owner", scope=Scope.ADMIN, sha256=hash_token("our own"))
    leaked = add_token(directory, "ann", Scope.READ).read_text()
    with live(tmp_path, tokens=(own,), tokens_file=directory / HASHES) as url:
        with pytest.raises(ConfigError, match=r"make another with omni-rl token --name NAME .*, and then remove this"):
            remove_token(directory, "ann")
        add_token(directory, "ann-2", Scope.READ)
        remove_token(directory, "ann")
        with Client(url, leaked, retries=Retries(attempts=1)) as client, pytest.raises(UnauthenticatedError):
            client.whoami()
        with Client(url, add_token(directory, "ann", Scope.READ).read_text()) as client:
            assert client.whoami().name == "ann"


def test_the_last_token_stays(tmp_path: Path) -> None:
    owner_token(tmp_path)
    with pytest.raises(ConfigError, match="last token"):
        remove_token(tmp_path, "owner")
    with pytest.raises(ConfigError, match="there are owner"):
        remove_token(tmp_path, "ann")
    assert [entry["name"] for entry in json.loads((tmp_path / HASHES).read_text())] == ["owner"]


@pytest.mark.parametrize("command", ["owner", "add", "remove"])
def test_wherever_a_process_is_killed_its_token_can_be_made_and_removed(tmp_path: Path, command: str) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), command], check=True)
    directories = list(tmp_path.iterdir())
    assert len(directories) > 3
    for directory in directories:
        assert counts(directory, owner_token(directory))
        with contextlib.suppress(ConfigError):  # it may have been killed before there was any
            remove_token(directory, "ann")
        assert counts(directory, add_token(directory, "ann", Scope.READ))
        remove_token(directory, "ann")
        assert not (directory / "tokens" / "ann").exists()


def counts(directory: Path, token: Path) -> bool:
    """Whether a coordinator of the directory would know the token."""
    entries = json.loads((directory / HASHES).read_text())
    return hash_token(token.read_text()) in [entry["sha256"] for entry in entries]
