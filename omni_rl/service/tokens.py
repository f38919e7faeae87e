"""The secrets of a service, each in a file that only its owner may read; none is ever printed or logged."""

import json
import re
import secrets
from pathlib import Path

from omni_rl_services.coordinator.auth import new_token

from omni_rl.api.state import Scope
from omni_rl.errors import ConfigError
from omni_rl.service.directory import write_new_private, write_private

HASHES = "tokens.json"
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
"""A token's name, which is also its file's."""
OWNER = "owner"
"""The name of the token that `up` makes, with the scope admin; the commands on this machine use it."""


def token_path(directory: Path, name: str) -> Path:
    return directory / "tokens" / name


def owner_token(directory: Path) -> Path:
    """Return the path of the owner's token, which is made if there is none."""
    path = token_path(directory, OWNER)
    return path if path.exists() else add_token(directory, OWNER, Scope.ADMIN)


def add_token(directory: Path, name: str, scope: Scope) -> Path:
    """Make a token and return its path; a running coordinator knows it at once.

    Raises `ConfigError` if there is a token of that name, or if the name is not allowed.
    """
    path = token_path(directory, _checked(name))
    if path.exists():
        raise ConfigError(
            f"{path} is there already; take another name, or remove the token with omni-rl token --remove {name} "
            f"--directory {directory}"
        )
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    token, digest = new_token()
    others = [entry for entry in _known(directory) if entry["name"] != name]
    # The file comes last, and whole: if the process is killed before that, the next call replaces the hash.
    _keep(directory, [*others, {"name": name, "scope": str(scope), "sha256": digest}])
    write_private(path, token)
    return path


def remove_token(directory: Path, name: str) -> None:
    """Remove a token; a running coordinator refuses it at once.

    Raises `ConfigError` if there is no token of that name, or if it is the last one of the directory: a coordinator
    takes a file without any for a damaged one, and goes on with the tokens that it knows.
    """
    path = token_path(directory, _checked(name))
    known = _known(directory)
    others = [entry for entry in known if entry["name"] != name]
    if others != known:
        if not others:
            raise ConfigError(
                f"{name!r} is the last token of {directory}, which has to have one: make another with omni-rl token "
                f"--name NAME --directory {directory}, and then remove this one"
            )
        _keep(directory, others)
    elif not path.exists():
        names = ", ".join(entry["name"] for entry in known)
        raise ConfigError(f"no token in {directory} is called {name!r}; there are {names or 'none'}")
    # If the process is killed before this, the next call finds the file without a hash, and removes it.
    path.unlink(missing_ok=True)


def _checked(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ConfigError(f"token name {name!r}: 1 to 64 letters, digits, dots, dashes or underscores, no dot first")
    return name


def _known(directory: Path) -> list[dict[str, str]]:
    hashes = directory / HASHES
    found: list[dict[str, str]] = json.loads(hashes.read_text()) if hashes.exists() else []
    return found


def _keep(directory: Path, entries: list[dict[str, str]]) -> None:
    write_private(directory / HASHES, json.dumps(entries))


def ray_token(directory: Path) -> Path:
    """Return the path of the Ray cluster's token, which is made if there is none."""
    path = directory / "ray_token"
    if not path.exists():
        write_new_private(path, secrets.token_hex(32))
    return path
