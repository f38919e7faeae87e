"""Runs the coordinator alone, in this process: it judges what other frameworks post, and shows it."""

import contextlib
import ipaddress
import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from omni_rl_services.coordinator.auth import hash_token
from omni_rl_services.coordinator.server import serve as serve_coordinator
from omni_rl_services.coordinator.settings import CoordinatorSettings, MediaSettings, TlsSettings, TokenEntry

from omni_rl.api.state import Scope
from omni_rl.errors import ConfigError, CoordinatorRunningError
from omni_rl.service.directory import held, prepared
from omni_rl.service.settings import ADDRESS, ServeSettings
from omni_rl.service.tokens import HASHES, OWNER, owner_token

Say = Callable[[str], None]


def serve(settings: ServeSettings, say: Say) -> None:
    """Run the coordinator until it is interrupted. `say` is called with the address, with the token's file, and at the
    end.

    Raises:
        ConfigError: the directory, the token's file or the TLS files cannot be used.
        CoordinatorRunningError: another process serves the same directory, or keeps the same ledger.
        ServiceError: the port is taken.
        LedgerError: the ledger cannot be opened.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    os.umask(0o077)  # what is kept here may hold prompts and answers
    directory = prepared(settings.directory, "serve.directory")
    with _held(directory):
        coordinator, token = _coordinator(settings, directory)
        serve_coordinator(coordinator, on_wait=say, on_start=lambda address: _tell(say, address, token, settings))
        say("stopped; everything that was acknowledged is kept")


@contextlib.contextmanager
def _held(directory: Path) -> Iterator[None]:
    """Hold the directory for this process alone. At the end the address file goes, so that no command reads an address
    that no longer answers."""
    with held(directory / "lock", lambda holder: _is_served(holder, directory)):
        try:
            yield
        finally:
            (directory / ADDRESS).unlink(missing_ok=True)


def _is_served(holder: str, directory: Path) -> CoordinatorRunningError:
    return CoordinatorRunningError(f"process {holder} serves {directory} already: end it, or name another --directory")


def _coordinator(settings: ServeSettings, directory: Path) -> tuple[CoordinatorSettings, Path]:
    """Return the coordinator's settings, and the path of the owner's token."""
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        raise ConfigError("serve.tls_certificate and serve.tls_key are set together, or neither is")
    tls = None
    if settings.tls_certificate is not None and settings.tls_key is not None:
        tls = TlsSettings(certificate=settings.tls_certificate.resolve(), key=settings.tls_key.resolve())
    token = owner_token(directory) if settings.token_file is None else settings.token_file.resolve()
    given = () if settings.token_file is None else (_entry(token),)
    return (
        CoordinatorSettings(
            host=settings.host,
            port=settings.port,
            address_file=directory / ADDRESS,
            standby=settings.standby,
            ledger=settings.ledger or f"sqlite:///{directory / 'ledger.db'}",
            media=MediaSettings(directory=directory / "media"),
            tokens=given,
            tokens_file=directory / HASHES,
            tls=tls,
            pager=settings.pager,
        ),
        token,
    )


def _entry(token_file: Path) -> TokenEntry:
    try:
        token = token_file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"serve.token_file {token_file} cannot be read: {error}") from None
    if len(token) < SHORTEST:
        raise ConfigError(
            f"serve.token_file {token_file} holds a token of {len(token)} characters; {SHORTEST} at least"
        )
    return TokenEntry(name=OWNER, scope=Scope.ADMIN, sha256=hash_token(token))


SHORTEST = 16
"""The fewest characters of a token that somebody else made: a shorter one can be guessed."""


def _tell(say: Say, address: str, token: Path, settings: ServeSettings) -> None:
    say(f"omni-rl at {address} (the page, and where runs post); Ctrl-C ends it")
    say(f"token in {token}")
    host = urlsplit(address).hostname or ""
    if settings.tls_certificate is None and not ipaddress.ip_address(host).is_loopback:
        say("other machines reach it over plain HTTP, which shows tokens: set tls_certificate and tls_key")
    if ipaddress.ip_address(host).is_unspecified:  # it stands for every address of this machine, and is none
        address = f"{urlsplit(address).scheme}://{socket.gethostname()}:{urlsplit(address).port}"
    say(f"in your run's environment: OMNI_RL_URL={address} OMNI_RL_TOKEN_FILE={token}")
    if settings.tls_certificate is not None:
        say("and, where no public authority vouches for the certificate, OMNI_RL_CA_FILE with the one that does")
