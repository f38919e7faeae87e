"""Receipts on their way to the coordinator, in a thread of their own: an engine never waits for it."""

import atexit
import logging
import threading
from collections import deque
from collections.abc import Callable

from omni_rl.client import Client
from omni_rl.errors import ConflictError, InvalidRequestError, TooLargeError

log = logging.getLogger("omni_rl.agent")
MOST = 32
"""Receipts that wait. Of more, the oldest goes: what the engine holds now is what matters."""
FIRST, LONGEST = 0.05, 5.0
"""Seconds between attempts, doubling."""
AT_EXIT = 3.0
"""Seconds that a process gives its last receipts."""
REFUSED = (ConflictError, InvalidRequestError, TooLargeError)
"""What sending again cannot mend."""


class ReceiptPoster:
    """Sends calls in order. A coordinator that is away, or has no such run yet, is asked again for ever."""

    def __init__(self, connect: Callable[[], Client]) -> None:
        self._connect = connect
        self._calls: deque[Callable[[Client], object]] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._said: set[str] = set()
        self.dropped = 0
        self._thread = threading.Thread(target=self._work, name="omni-rl-agent", daemon=True)
        self._thread.start()
        atexit.register(self.flush, AT_EXIT)

    def put(self, post: Callable[[Client], object]) -> None:
        """Queue what is to be sent with a client, in the thread. Never waits."""
        with self._changed:
            self._calls.append(post)
            if len(self._calls) > MOST:
                # Not the first: it may be on its way.
                del self._calls[1]
                self.dropped += 1
                self._say("dropped", "receipts wait for a coordinator that does not take them; older ones are dropped")
            self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Wait until all is sent, at most so long; returns whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._calls, seconds)

    def close(self) -> None:
        """Stop sending."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join()
        atexit.unregister(self.flush)

    def _work(self) -> None:
        client: Client | None = None
        wait = FIRST
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._calls)
                if self._ended:
                    break
                post = self._calls[0]
            try:
                client = client or self._connect()
                post(client)
            except REFUSED as error:
                self._say("refused", f"a receipt was refused: {error}")
            except Exception as error:
                # The boundary between our thread and somebody's engine: whatever fails is told once, and tried again.
                self._say("away", f"nothing can be posted for now, and is tried again: {error}")
                if client is not None:
                    client.close()
                client = None
                with self._changed:
                    self._changed.wait_for(lambda: self._ended, wait)
                wait = min(2 * wait, LONGEST)
                continue
            wait = FIRST
            with self._changed:
                self._calls.popleft()
                self._changed.notify_all()
        if client is not None:
            client.close()

    def _say(self, kind: str, what: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            log.warning("omni-rl: %s", what)
