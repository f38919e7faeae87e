"""Tells failures that are mistakes in an address from a coordinator that is away: to send again repairs no mistake."""

import socket
import ssl
from typing import TypeVar

import httpx

from omni_rl.errors import AddressError, CoordinatorUnreachableError, SchemeError

E = TypeVar("E", bound=BaseException)
HANDSHAKE = 2.0
"""The seconds in which a server must show that it speaks TLS."""
Mistake = tuple[type[CoordinatorUnreachableError], str]
"""The class of the error, and what to try."""


def mistake(error: httpx.TransportError) -> Mistake | None:
    """Return what is wrong with the address; None where the coordinator may just be away."""
    if (cause := _caused_by(error, ssl.SSLError)) is not None:
        if "CERTIFICATE_VERIFY_FAILED" in str(cause):
            return AddressError, "; OMNI_RL_CA_FILE names the certificates that vouch for it"
        if cause.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
            return SchemeError, "; it speaks plain HTTP there: the address begins with http://"
    if (unknown := _caused_by(error, socket.gaierror)) is not None and unknown.errno != socket.EAI_AGAIN:
        return AddressError, "; is the host's name in OMNI_RL_URL right?"
    if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError) and _speaks_tls(error.request.url):
        return SchemeError, "; it speaks https there: the address begins with https://"
    return None


def _caused_by(error: BaseException, kind: type[E]) -> E | None:
    link: BaseException | None = error
    while link is not None and not isinstance(link, kind):
        link = link.__cause__ or link.__context__
    return link


def _speaks_tls(url: httpx.URL) -> bool:
    """Return whether a server that broke off a plain request answers a TLS handshake: one that is just restarting
    breaks off plain requests too."""
    if url.scheme != "http":
        return False
    anyone = ssl.create_default_context()
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((url.host, url.port or 80), HANDSHAKE) as plain,
            anyone.wrap_socket(plain, server_hostname=url.host),
        ):
            return True
    except OSError:
        return False
