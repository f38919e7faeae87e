"""Who sends a request, and what they may do: bearer tokens with scopes, and the dashboard's session cookie."""

import hashlib
import hmac
import logging
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from omni_rl.api.state import Scope
from omni_rl.errors import ConfigError
from omni_rl_services.coordinator.settings import CoordinatorSettings

logger = logging.getLogger("omni_rl.coordinator")
SESSION_COOKIE = "omni_rl_session"
SESSION_SECONDS = 8 * 3600
"""Seconds for which a session lasts: a working day."""
ASK_FOR_ONE = "send a token: Authorization: Bearer TOKEN"
MAX_SESSIONS = 1024
"""The most sessions at once; the oldest ends when one more is opened."""


@dataclass(frozen=True)
class Caller:
    """The sender of a request, by the name of their token."""

    name: str
    scope: Scope


LOCAL = Caller("local", Scope.ADMIN)
"""The caller that everyone is where there are no tokens: the coordinator then listens on this machine alone."""


def new_token() -> tuple[str, str]:
    """Return a token of 256 random bits, and its hash, which is stored. The hash has no salt: what is random cannot be
    guessed."""
    token = f"orl_{secrets.token_urlsafe(32)}"
    return token, hash_token(token)


def hash_token(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


class Tokens:
    """The tokens of a coordinator by their hashes. A tokens file that changes is read again at the next request, so
    that a new token counts, and a removed one does not, without a restart.

    Raises `ConfigError` if the file cannot be used at the start. Later, tokens stay as they were until it can: it is
    read at every request until then, since what kept it from being read may end without a change of the file.
    """

    def __init__(self, settings: CoordinatorSettings) -> None:
        self._settings = settings
        self._seen = self._refused = self._stamp()
        self._entries = self._read()

    def __bool__(self) -> bool:
        return bool(self._entries)

    def caller(self, token: str) -> Caller | None:
        """Return whose token this is. Every entry is compared, so that the time taken tells nothing about any."""
        self._refresh()
        given, found = hash_token(token).encode(), None
        for known, caller in self._entries:
            if hmac.compare_digest(known, given):
                found = caller
        return found

    def includes(self, caller: Caller) -> bool:
        """Return whether one of the tokens is this caller's, with the same scope."""
        self._refresh()
        return any(caller == known for _, known in self._entries)

    def _refresh(self) -> None:
        stamp = self._stamp()
        if stamp == self._seen:
            return
        try:
            self._entries = self._read()
        except ConfigError as error:
            if stamp != self._refused:  # once for each change, not at every request
                logger.warning("the tokens stay as they were: %s", error)
            self._refused = stamp
            return
        self._seen = stamp

    def _read(self) -> list[tuple[bytes, Caller]]:
        return [(entry.sha256.encode(), Caller(entry.name, entry.scope)) for entry in self._settings.all_tokens()]

    def _stamp(self) -> tuple[int, int, int] | None:
        """Return a value that differs after every change of the file: its writers replace it, so that its inode changes
        too."""
        if self._settings.tokens_file is None:
            return None
        try:
            found = os.stat(self._settings.tokens_file)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


def caller_of(tokens: Tokens, sessions: "Sessions", bearer: str | None, session: str | None) -> Caller | None:
    """Return who has this token or this session's cookie, or None if nobody has. A token counts before a cookie."""
    if not tokens:
        return LOCAL
    if bearer is not None:
        return tokens.caller(bearer)
    found = None if session is None else sessions.caller(session)
    # A session is worth no more than the token that began it.
    return found if found is not None and tokens.includes(found) else None


class Sessions:
    """Browser sessions: a random name in a cookie, known here by its hash. A restart ends them all."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: OrderedDict[str, tuple[Caller, float]] = OrderedDict()

    def begin(self, caller: Caller) -> str:
        """Open a session, and return the cookie's value."""
        session = secrets.token_urlsafe(32)
        self._open[hash_token(session)] = (caller, self._clock() + SESSION_SECONDS)
        while len(self._open) > MAX_SESSIONS:
            self._open.popitem(last=False)
        return session

    def caller(self, session: str) -> Caller | None:
        key = hash_token(session)
        caller, ends = self._open.get(key, (None, 0.0))
        if caller is not None and self._clock() >= ends:
            del self._open[key]
            return None
        return caller

    def end(self, session: str) -> None:
        self._open.pop(hash_token(session), None)
