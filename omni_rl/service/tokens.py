"""Secrets of a service, each in a file that only its owner may read; none is ever printed or logged."""

import json
import os
import secrets
from pathlib import Path

from omni_rl_services.coordinator.auth import new_token

from omni_rl.api.state import Scope
from omni_rl.errors import ConfigError

HASHES = "tokens.json"
OWNER = "owner"
"""Whose token `up` makes, with the scope admin; the commands on this machine use it."""


def token_path(directory: Path, name: str) -> Path:
    return directory / "tokens" / name


def owner_token(directory: Path) -> Path:
    """Where the owner's token lies; it is made if there is none."""
    path = token_path(directory, OWNER)
    return path if path.exists() else add_token(directory, OWNER, Scope.ADMIN)


def add_token(directory: Path, name: str, scope: Scope) -> Path:
    """Make a token; the coordinator knows its hash from its next start on. Raises `ConfigError` if there is one."""
    path = token_path(directory, name)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    token, digest = new_token()
    try:
        write_secret(path, token)
    except FileExistsError:
        raise ConfigError(f"{path} is there already; take another name, or remove it to make a new one") from None
    hashes = directory / HASHES
    known = json.loads(hashes.read_text()) if hashes.exists() else []
    others = [entry for entry in known if entry["name"] != name]
    partial = directory / f"{HASHES}.{os.getpid()}"
    write_secret(partial, json.dumps([*others, {"name": name, "scope": str(scope), "sha256": digest}]))
    partial.replace(hashes)
    return path


def ray_token(directory: Path) -> Path:
    """Where the token of the Ray cluster lies; it is made if there is none."""
    path = directory / "ray_token"
    if not path.exists():
        write_secret(path, secrets.token_hex(32))
    return path


def write_secret(path: Path, text: str) -> None:
    """A new file for its owner alone. Raises `FileExistsError`."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
