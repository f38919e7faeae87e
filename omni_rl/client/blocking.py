"""A blocking client of the coordinator's API: each method returns when the answer has come."""

import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import TypeVar

import httpx

from omni_rl.api.events import EventAnswer
from omni_rl.client import calls, older
from omni_rl.client.call import Call
from omni_rl.client.failures import raise_for_problem
from omni_rl.client.retries import Retries, after_answer, after_failure
from omni_rl.client.routes import Routes
from omni_rl.client.settings import ClientSettings
from omni_rl.client.streams import EventReader
from omni_rl.closing import Closing
from omni_rl.errors import InvalidRequestError, RecordError

T = TypeVar("T")
DEFAULT = Retries()


class Client(Closing, Routes):
    """Every method raises what the coordinator raised (`omni_rl.errors`, by the problem's code), or
    `CoordinatorUnreachableError`. A request whose answer was lost is sent again if a second one changes nothing more.

    Without `url` and `token`, OMNI_RL_URL and OMNI_RL_TOKEN name the coordinator and the caller. `timeout` is in
    seconds. Use the client as a context manager, or `close` it. With `leave_out`, fields that a coordinator of an older
    version does not know are left out of each request, and `leave_out` is called each time with a sentence that names
    them; without it, the coordinator's refusal is raised.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        timeout: float = 30.0,
        retries: Retries = DEFAULT,
        transport: httpx.BaseTransport | None = None,
        leave_out: Callable[[str], None] | None = None,
    ) -> None:
        settings = ClientSettings.of(url, token)
        self._retries = retries
        self._leave_out = leave_out
        self._known: older.Known | None = None
        self._http = httpx.Client(
            base_url=settings.url,
            headers=settings.headers,
            timeout=timeout,
            transport=transport,
            verify=settings.verify,
            trust_env=False,
        )

    def close(self) -> None:
        self._http.close()

    def events(self, after: int | None = None, run: str | None = None) -> Iterator[EventAnswer]:
        """Follow events for ever: those with numbers above `after` (None: from now on), of one `run` or of all. A lost
        connection is made again, and goes on after the last event seen, or else where the first connection began.

        After as many failures in a row as `retries` allows, raises `CoordinatorUnreachableError`, or `ApiError` where a
        proxy answered for the coordinator.
        """
        reader, attempt = EventReader(after), 1
        while True:
            call = calls.follow(reader.last, run)
            try:
                with self._http.stream(
                    call.method, call.path, params=call.params, headers=call.headers, timeout=calls.STREAM_TIMEOUT
                ) as response:
                    wait = after_answer(call, response, attempt, self._retries)
                    if wait is None:
                        if not response.is_success:
                            response.read()
                            raise_for_problem(response)
                        attempt = 1
                        reader.begin()
                        for line in response.iter_lines():
                            if (event := reader.feed(line)) is not None:
                                yield event
            except httpx.TransportError as error:
                wait = after_failure(call, error, attempt, self._retries)
            if wait is None:  # the server has ended the stream
                time.sleep(calls.STREAM_PAUSE)
                continue
            attempt += 1
            time.sleep(wait)

    def _send(self, call: Call[T]) -> T:
        if self._leave_out is None:
            return self._sent(call)
        if self._known is not None:
            return self._sent(self._without_unknown(call, self._known))
        try:
            return self._sent(call)
        except (InvalidRequestError, RecordError):
            self._known = self._sent(older.known())
            known = self._without_unknown(call, self._known)
            if known is call:
                raise
            return self._sent(known)

    def _without_unknown(self, call: Call[T], known: older.Known) -> Call[T]:
        """Return the call without what the coordinator does not know; `call` itself if it knows everything."""
        assert self._leave_out is not None
        fewer, unknown = known.without_unknown(call)
        if unknown:
            self._leave_out(known.sentence(unknown))
        return fewer

    def _sent(self, call: Call[T]) -> T:
        for attempt in count(1):
            try:
                response = self._http.request(**call.request(self._http.timeout))
            except httpx.TransportError as error:
                time.sleep(after_failure(call, error, attempt, self._retries))
                continue
            wait = after_answer(call, response, attempt, self._retries)
            if wait is None:
                return call.answer(response)
            time.sleep(wait)
        raise AssertionError("attempts end")
