"""Where the coordinator is, and with which token it is asked."""

import os
import ssl
from dataclasses import dataclass
from pathlib import Path

from omni_rl.errors import ConfigError

DEFAULT_URL = "http://127.0.0.1:8400"


@dataclass(frozen=True)
class ClientSettings:
    """The base address and the headers of every request; `verify` says which certificates vouch for an https address,
    as httpx takes it."""

    url: str
    headers: dict[str, str]
    verify: ssl.SSLContext | bool = True

    @classmethod
    def of(cls, url: str | None, token: str | None) -> "ClientSettings":
        """Return the settings as given, or else from OMNI_RL_URL and OMNI_RL_TOKEN, or else the local default.

        OMNI_RL_TOKEN_FILE names a file with the token, for where environments are shown; OMNI_RL_CA_FILE one with the
        certificates that vouch for an https address, where no public authority does.
        """
        base = url or os.environ.get("OMNI_RL_URL") or DEFAULT_URL
        if not base.startswith(("http://", "https://")):
            raise ConfigError(f"coordinator address {base!r} must begin with http:// or https://")
        secret = token or os.environ.get("OMNI_RL_TOKEN") or _from_file(os.environ.get("OMNI_RL_TOKEN_FILE"))
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        return cls(base.rstrip("/"), headers, _vouched(os.environ.get("OMNI_RL_CA_FILE")))


def _from_file(path: str | None) -> str | None:
    if not path:
        return None
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise ConfigError(f"OMNI_RL_TOKEN_FILE {path} cannot be read: {error.strerror}") from None


def _vouched(path: str | None) -> ssl.SSLContext | bool:
    if not path:
        return True
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"OMNI_RL_CA_FILE {path} holds no certificates: {error}") from None
