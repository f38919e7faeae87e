"""Sends long answers in pieces: a connection whose client reads none of the next piece for a while is closed."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

PIECE = 256 << 10
"""Bytes that are handed on at once. The next ones wait until a client has read most of these, for
`connections.UNREAD_SECONDS` at most."""


class ChunkedAnswers:
    """Middleware that splits the bodies of answers: a body that is handed on whole is in memory until its client has
    read all of it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            body = message.get("body", b"")
            if message["type"] != "http.response.body" or len(body) <= PIECE:
                await send(message)
                return
            for at in range(0, len(body), PIECE):
                more = at + PIECE < len(body) or message.get("more_body", False)
                await send({"type": message["type"], "body": body[at : at + PIECE], "more_body": more})

        await self._app(scope, receive, sending)
