"""Where the coordinator is, and with which token it is asked."""

import os
import ssl
from dataclasses import dataclass
from pathlib import Path

import httpx

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
        certificates that vouch for an https address, where no public authority does. White space around a token does
        not count.

        Raises `ConfigError` for what cannot be an address or a token, and for a file that cannot be read.
        """
        base = url or os.environ.get("OMNI_RL_URL") or DEFAULT_URL
        if not base.startswith(("http://", "https://")):
            raise ConfigError(f"coordinator address {base!r} must begin with http:// or https://")
        _require_host(base)
        secret = _token(token)
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        return cls(base.rstrip("/"), headers, _vouched(os.environ.get("OMNI_RL_CA_FILE")))


def _require_host(base: str) -> None:
    try:
        host = httpx.URL(base).host
    except (httpx.InvalidURL, UnicodeError) as error:  # httpx lets the errors of internationalised names through
        raise ConfigError(f"coordinator address {base!r} cannot be read: {error}") from None
    if not host:
        raise ConfigError(f"coordinator address {base!r} names no host")


def _token(given: str | None) -> str:
    """Return the token without the white space around it; "" where there is none."""
    secret = (given or "").strip() or os.environ.get("OMNI_RL_TOKEN", "").strip()
    secret = secret or _from_file(os.environ.get("OMNI_RL_TOKEN_FILE"))
    if not (secret.isascii() and secret.isprintable()):
        # httpx's own refusal of such a header shows the token, and whoever logs that error logs the token.
        raise ConfigError(
            "the token has a character that is not printable ASCII; look at OMNI_RL_TOKEN, or at the file that "
            "OMNI_RL_TOKEN_FILE names"
        )
    return secret


def _from_file(path: str | None) -> str:
    if not path:
        return ""
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise ConfigError(f"OMNI_RL_TOKEN_FILE {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"OMNI_RL_TOKEN_FILE {path} holds no token: it is not text") from None


def _vouched(path: str | None) -> ssl.SSLContext | bool:
    if not path:
        return True
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"OMNI_RL_CA_FILE {path} holds no certificates: {error}") from None
