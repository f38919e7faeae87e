"""Who is calling, and what they may do: bearer tokens with scopes, and the dashboard's session cookie."""

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from omni_rl.api.state import Scope

SESSION_COOKIE = "omni_rl_session"
SESSION_SECONDS = 8 * 3600
"""A working day."""
MAX_SESSIONS = 1024
"""The oldest goes when one more is opened."""


@dataclass(frozen=True)
class Caller:
    """Whoever sent a request, by the name of their token."""

    name: str
    scope: Scope


LOCAL = Caller("local", Scope.ADMIN)
"""Everyone, where there are no tokens: the coordinator then listens on this machine alone."""


class Known(Protocol):
    """A token as it is kept."""

    @property
    def name(self) -> str: ...
    @property
    def scope(self) -> Scope: ...
    @property
    def sha256(self) -> str: ...


def new_token() -> tuple[str, str]:
    """A token of 256 random bits, and the hash of it that is kept. No salt: what is random cannot be guessed."""
    token = f"orl_{secrets.token_urlsafe(32)}"
    return token, hash_token(token)


def hash_token(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


class Tokens:
    """Tokens by their hashes."""

    def __init__(self, entries: Iterable[Known]) -> None:
        self._entries = [(entry.sha256.encode(), Caller(entry.name, entry.scope)) for entry in entries]

    def __bool__(self) -> bool:
        return bool(self._entries)

    def caller(self, token: str) -> Caller | None:
        """Whose token this is. Looks at every entry, so that time tells nothing about any."""
        given, found = hash_token(token).encode(), None
        for known, caller in self._entries:
            if hmac.compare_digest(known, given):
                found = caller
        return found


class Sessions:
    """Browser sessions: a random name in a cookie, known here by its hash. A restart ends them all."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: OrderedDict[str, tuple[Caller, float]] = OrderedDict()

    def begin(self, caller: Caller) -> str:
        """The cookie's value."""
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
