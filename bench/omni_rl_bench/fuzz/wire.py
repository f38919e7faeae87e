"""Opens a raw socket to the coordinator: sends what no HTTP client would, and reads every answer that comes."""

import contextlib
import io
import socket

from omni_rl_bench.fuzz.answers import Answer
from omni_rl_bench.fuzz.grammar import Case

SECONDS = 60.0
"""The seconds after which an answer that must come is missing."""
PERHAPS_SECONDS = 1.0
"""The seconds after which an answer that need not come is not awaited any longer."""


class Wire:
    """One connection at a time, a new one where the last was ended or is of no more use."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._socket: socket.socket | None = None
        self._reader: io.BufferedReader | None = None

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
        if self._socket is not None:
            self._socket.close()
        self._socket = self._reader = None

    def exchange(self, case: Case) -> list[Answer]:
        """Send a case; return its answers, as many as came."""
        kept = self._socket is not None
        answers = self._once(case)
        if kept and not answers and case.request.answering == "always":
            # The server may have ended the idle connection while this request was on its way.
            answers = self._once(case)
        return answers

    def _once(self, case: Case) -> list[Answer]:
        answering = case.request.answering
        answers: list[Answer] = []
        try:
            opened, reader = self._opened()
            opened.settimeout(SECONDS if answering == "always" else PERHAPS_SECONDS)
            opened.sendall(bytes(case.request))
            if answering != "waits":
                for method in case.request.sent:
                    answer, more = _read(reader, method)
                    answers.append(answer)
                    if not more:
                        self.close()
                        break
        except (OSError, ValueError, EOFError):
            self.close()
        if answering != "always" or case.streams:
            self.close()
        return answers

    def _opened(self) -> tuple[socket.socket, io.BufferedReader]:
        if self._socket is None or self._reader is None:
            self._socket = socket.create_connection(self._address, timeout=SECONDS)
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._reader = self._socket.makefile("rb")
        return self._socket, self._reader


def _read(reader: io.BufferedReader, method: str) -> tuple[Answer, bool]:
    """Return an answer, and whether another can come on its connection. Raises `EOFError` where none does."""
    while True:
        line = reader.readline()
        if not line.startswith(b"HTTP/1."):
            raise EOFError
        status = int(line.split()[1])
        headers: dict[str, str] = {}
        while (header := reader.readline()) not in (b"\r\n", b""):
            name, _, value = header.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        if status >= 200:
            break
    length = headers.get("content-length")
    content_type = headers.get("content-type", "").split(";")[0]
    more = headers.get("connection") != "close"
    if method == "HEAD" or status in (204, 304):
        return Answer(status, content_type, None), more
    if length is None:  # a stream, or until the end: of no error
        return Answer(status, content_type, b""), False
    body = reader.read(int(length))
    if len(body) < int(length):
        raise EOFError
    return Answer(status, content_type, body), more
