"""The coordinator's API for programs with an event loop."""

import asyncio
from collections.abc import AsyncIterator
from itertools import count
from typing import Self, TypeVar

import httpx

from omni_rl.api.events import EventAnswer
from omni_rl.client import calls
from omni_rl.client.blocking import Client
from omni_rl.client.call import Call
from omni_rl.client.failures import raise_for_problem
from omni_rl.client.retries import Retries, after_answer, after_failure
from omni_rl.client.routes import Routes
from omni_rl.client.settings import ClientSettings
from omni_rl.client.streams import EventReader

T = TypeVar("T")
DEFAULT = Retries()


class AsyncClient(Routes):
    """As `Client`, method by method."""

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        timeout: float = 30.0,
        retries: Retries = DEFAULT,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        settings = ClientSettings.of(url, token)
        self._retries = retries
        self._http = httpx.AsyncClient(
            base_url=settings.url,
            headers=settings.headers,
            timeout=timeout,
            transport=transport,
            verify=settings.verify,
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def events(self, after: int | None = None, run: str | None = None) -> AsyncIterator[EventAnswer]:
        reader, attempt = EventReader(after), 1
        while True:
            call = calls.follow(reader.last, run)
            try:
                async with self._http.stream(
                    call.method, call.path, params=call.params, headers=call.headers, timeout=calls.STREAM_TIMEOUT
                ) as response:
                    wait = after_answer(call, response, attempt, self._retries)
                    if wait is None:
                        if not response.is_success:
                            await response.aread()
                            raise_for_problem(response)
                        attempt = 1
                        reader.begin()
                        async for line in response.aiter_lines():
                            if (event := reader.feed(line)) is not None:
                                yield event
            except httpx.TransportError as error:
                wait = after_failure(call, error, attempt, self._retries)
            if wait is None:  # the server has ended the stream
                await asyncio.sleep(calls.STREAM_PAUSE)
                continue
            attempt += 1
            await asyncio.sleep(wait)

    events.__doc__ = Client.events.__doc__

    async def _send(self, call: Call[T]) -> T:
        for attempt in count(1):
            try:
                response = await self._http.request(**call.request(self._http.timeout))
            except httpx.TransportError as error:
                await asyncio.sleep(after_failure(call, error, attempt, self._retries))
                continue
            wait = after_answer(call, response, attempt, self._retries)
            if wait is None:
                return call.answer(response)
            await asyncio.sleep(wait)
        raise AssertionError("attempts end")
