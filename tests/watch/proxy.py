"""A proxy in front of a coordinator, which notes what passes, and holds up or cuts off media if told to."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

MEDIA = "/v1/media/"
HOP = {"host", "connection", "transfer-encoding", "content-encoding", "content-length"}
"""Headers of one connection, or of a body as it was sent on it."""


@dataclass
class Proxy:
    """`passed`: method and path of each request that came, in order. Media wait until `open` is set, and are not
    answered at all while it is `cut`."""

    url: str
    passed: list[tuple[str, str]] = field(default_factory=list)
    open: threading.Event = field(default_factory=threading.Event)
    cut: bool = False

    def uploads(self) -> list[str]:
        """The paths of the media that came, in order."""
        return [path for method, path in self.passed if method == "PUT" and path.startswith(MEDIA)]


@contextmanager
def proxying(coordinator: str) -> Iterator[Proxy]:
    """A proxy before the coordinator at that address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            proxy.passed.append((self.command, self.path))
            if self.path.startswith(MEDIA):
                proxy.open.wait()
                if proxy.cut:
                    self.close_connection = True
                    return
            headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
            answer = httpx.request(
                self.command, coordinator + self.path, content=body, headers=headers, timeout=60, trust_env=False
            )
            self.send_response(answer.status_code)
            for name, value in answer.headers.items():
                if name not in HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_GET = do_PUT = do_POST = _pass  # noqa: N815 - the base class's names

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        proxy = Proxy(f"http://127.0.0.1:{server.server_port}")
        proxy.open.set()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield proxy
        server.shutdown()
