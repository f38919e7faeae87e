"""Posts to the coordinator from a thread of its own, so that the program never waits for the coordinator."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from omni_rl.client.blocking import Client
from omni_rl.client.retries import ONCE
from omni_rl.errors import (
    AddressError,
    ConfigError,
    ConflictError,
    ForbiddenError,
    InvalidRequestError,
    RecordError,
    SchemeError,
    TooLargeError,
    UnauthenticatedError,
)

REFUSED = (ConflictError, InvalidRequestError, RecordError, TooLargeError)
"""The errors of requests that are refused again however often they are sent."""
MISCONFIGURED = (AddressError, ForbiddenError, UnauthenticatedError)
"""The errors that, before the coordinator has ever answered, are mistakes in how the program was set up. Later they
come from a coordinator that is being replaced."""
AWAY = "away"
MORE = 4096
"""How many rests of dropped items may wait beside the bounded ones."""


Post = Callable[[Client], object]
"""Sends something. It returns False if it has to wait for other processes, and is then called again."""


@dataclass(frozen=True, eq=False)
class Item:
    """An item that waits to be sent. It holds at most `size` bytes, and is dropped where there is no room. `rest`
    returns what is sent in its place then; such a rest is not `bounded`."""

    post: Post
    size: int = 0
    rest: Callable[[], Post | None] = lambda: None
    bounded: bool = True


@dataclass(frozen=True)
class Pace:
    """The seconds between attempts: from `first`, doubling, to `longest`."""

    first: float = 0.05
    longest: float = 5.0


class Poster:
    """Posts items in order, in a thread that keeps no process alive.

    A coordinator that is down, slow or restarted is asked again for ever, and each kind of trouble is logged once.
    Where more waits than there is room for, the oldest items are dropped whole, and counted. `flush` does not wait for
    what cannot arrive because an address, a token or a setting is wrong. What an older coordinator does not know is
    left out.
    """

    def __init__(
        self,
        url: str | None,
        token: str | None,
        log: logging.Logger,
        *,
        items: int,
        size: int = 1 << 29,
        pace: Pace | None = None,
        greet: Callable[[Client], None] = lambda client: None,
        later: Callable[[], Post | None] = lambda: None,
        dropping: str = "what waits for the coordinator is more than there is room for: the oldest is dropped",
    ) -> None:
        """Start the thread.

        Args:
            url, token: The coordinator's, as `Client` takes them.
            items, size: How many items may wait, and how many bytes they may hold.
            greet: Called with each new client before it posts anything.
            later: Returns what is to be posted once no item waits, and which stays due until this no longer returns it;
                called while `changed` is held.
            dropping: What is logged when something is dropped for the first time.
        """
        self.changed = threading.Condition()
        """The condition that is notified of everything that may let `flush` return; code that changes what `later`
        returns holds it."""
        self.dropped = 0
        self._url, self._token = url, token
        self._log = log
        self._most, self._most_bytes = items, size
        self._pace = pace or Pace()
        self._greet = greet
        self._later = later
        self._dropping = dropping
        self._items: deque[Item] = deque()
        self._client: Client | None = None
        self._met = False
        self._obstacle: str | None = None
        self._ended = False
        self._said: set[str] = set()
        self._thread = threading.Thread(target=self._work, name=log.name, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        with self.changed:
            return len(self._items)

    @property
    def obstacle(self) -> str | None:
        """Why nothing can be posted: an address, a token or a setting of this process is wrong. None where nothing is
        known to be."""
        with self.changed:
            return self._obstacle

    @property
    def ended(self) -> bool:
        """Whether `close` was called."""
        with self.changed:
            return self._ended

    def put(self, post: Post, *, size: int = 0, rest: Callable[[], Post | None] = lambda: None) -> None:
        """Hand over what is to be sent, which holds `size` bytes until then. This never waits. `rest` returns what is
        sent in its place if it is dropped."""
        with self.changed:
            self._items.append(Item(post, size, rest))
            self._make_room()
            self.changed.notify_all()

    def flush(self, seconds: float, enough: Callable[[], bool] = lambda: False) -> bool:
        """Wait until everything has arrived, or cannot for a mistake in how this process is set up, for `seconds` at
        most; return whether everything has arrived. Once the thread has ended, and in that thread, nothing is waited
        for.

        `enough` is asked after everything that arrives: where it returns true, the rest is not waited for.
        """
        with self.changed:
            # What is posted may call back into the program, which may flush there: the thread would wait for itself.
            if threading.current_thread() is not self._thread:
                self.changed.wait_for(lambda: enough() or self._idle or self._obstacle or self._ended, seconds)
            return self._idle

    def close(self, seconds: float) -> bool:
        """Do what `flush` does, and end the thread."""
        arrived = self.flush(seconds)
        with self.changed:
            self._ended = True
            self.changed.notify_all()
        return arrived

    def say(self, kind: str, what: str) -> None:
        """Log each kind of trouble once; that the coordinator is away, once each time."""
        if kind not in self._said:
            self._said.add(kind)
            self._log.warning("omni-rl: %s", what)

    @property
    def _idle(self) -> bool:
        return not self._items and self._later() is None

    def _make_room(self) -> None:
        """Drop whole items, the oldest first. The first one stays, because it may be on its way, and so does the one
        that has just come."""
        bounded = [item for item in self._items if item.bounded]
        size = sum(item.size for item in bounded)
        count = len(bounded)
        for item in bounded[1:-1]:
            if count <= self._most and size <= self._most_bytes:
                break
            count, size = count - 1, size - item.size
            self.dropped += 1
            self.say("dropped", self._dropping)
            if (rest := item.rest()) is None:
                self._items.remove(item)
            else:
                self._items[self._items.index(item)] = Item(rest, bounded=False)
        rests = [item for item in self._items if not item.bounded]
        for item in rests[: max(0, len(rests) - MORE)]:
            self._items.remove(item)

    def _work(self) -> None:
        wait = self._pace.first
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self._ended or not self._idle)
                if self._ended:
                    break
                item = self._items[0] if self._items else None
                post = item.post if item else self._later()
                assert post is not None
            try:
                done = self._send(post)
            except Exception as error:
                # The boundary between our thread and somebody's process: what fails here is logged, and tried again.
                self._failed(error)
                final = isinstance(error, SchemeError)
                with self.changed:
                    self.changed.wait_for(lambda: self._ended, None if final else wait)
                wait = min(2 * wait, self._pace.longest)
                continue
            wait = self._pace.first
            self._answered(item, done)
            if not done:
                self._rest(item)
        if self._client is not None:
            self._client.close()

    def _send(self, post: Post) -> bool:
        client = self._open()
        try:
            return post(client) is not False
        except REFUSED as error:
            self.say("refused", f"the coordinator refused something: {error}")
            return True

    def _open(self) -> Client:
        if self._client is None:
            client = Client(self._url, self._token, retries=ONCE, leave_out=lambda what: self.say(what, what))
            try:
                self._greet(client)
            except BaseException:
                client.close()
                raise
            self._client = client
        return self._client

    def _answered(self, item: Item | None, done: bool) -> None:
        self._met = True
        if AWAY in self._said:
            self._said.remove(AWAY)
            self._log.warning("omni-rl: the coordinator answers again")
        with self.changed:
            self._obstacle = None
            if done and item is not None and item in self._items:
                self._items.remove(item)
            self.changed.notify_all()

    def _rest(self, seen: Item | None) -> None:
        """Wait a little for other processes; not longer than until this process has something new to post."""
        with self.changed:
            self.changed.wait_for(lambda: self._ended or (self._items and self._items[0] is not seen), self._pace.first)

    def _failed(self, error: Exception) -> None:
        hopeless = isinstance(error, (ConfigError, SchemeError)) or (not self._met and isinstance(error, MISCONFIGURED))
        if hopeless:
            named = "; OMNI_RL_TOKEN_FILE names the file with it" if isinstance(error, UnauthenticatedError) else ""
            self.say("config", f"nothing can be posted: {error}{named}")
        else:
            self.say(AWAY, f"nothing can be posted for now, and is tried again: {error}")
        # A token may have been renewed, and what `greet` made may be lost with its ledger.
        if self._client is not None:
            self._client.close()
        self._client = None
        with self.changed:
            self._obstacle = str(error) if hopeless else None
            self.changed.notify_all()
