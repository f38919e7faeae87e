"""Writes requests as they go over the socket, and heads that no client writes but somebody may."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal
from urllib.parse import quote

Answering = Literal["always", "perhaps", "waits"]
"""Whether a request is answered. always: it is; perhaps: it is, or the connection is ended instead; waits: the server
waits for more of it."""


@dataclass(frozen=True)
class Request:
    """One request, or several, as they go over the socket."""

    method: str
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    version: bytes = b"HTTP/1.1"
    answering: Answering = "always"
    before: bytes = b""
    """Bytes that are sent ahead of the request, as clients do that do not wait for an answer."""
    methods: tuple[str, ...] = field(default=())
    """The methods of all requests that are sent, in order; HEAD has no body in its answer."""

    @property
    def sent(self) -> tuple[str, ...]:
        return self.methods or (self.method,)

    def __bytes__(self) -> bytes:
        line = b"%s %s %s\r\n" % (self.method.encode("latin-1"), self.target, self.version)
        return self.before + line + b"".join(b"%s: %s\r\n" % header for header in self.headers) + b"\r\n" + self.body


def request(
    method: str, target: str, content_type: str, body: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> Request:
    """Return a request as a client writes it."""
    own = ((b"Host", b"localhost"), *headers)
    if content_type:
        own = (*own, (b"Content-Type", content_type.encode("latin-1", "replace")))
    if body or method in ("PUT", "POST"):
        own = (*own, (b"Content-Length", b"%d" % len(body)))
    return Request(method, target.encode("ascii"), own, body)


def odd_text(rng: random.Random) -> str:
    """Return an odd text for a place in a path or a query, as it goes over the socket."""
    odd = rng.choice(
        (
            *("", "%", "%00", "%0", "%zz", "%ff%fe", "%ed%a0%80", "%2F", "%2f..%2f", "..", ".", "%0d%0aX:%20y", "%25"),
            *("-1", "0", "1.5", "1e3", "NaN", "2147483648", "9007199254740993", "9" * 400, "9" * 5_000, "0x10", "+1"),
            *(
                "1_000",
                "%C2%B2",
                "true",
                "null",
                "a" * 65,
                "a" * 3_000,
                "%F0%9F%A6%9C",
                "%D9%A1",
                "a b".replace(" ", "+"),
            ),
            *("run-0%20", "run-0.", "*", "'", '"%22', "[]", "a=b", "a&b", ";", "|", "~", "%5C", "%E2%80%AE"),
        )
    )
    return odd if rng.random() < 0.9 else quote(rng.randbytes(rng.randrange(1, 12)))


_NAMES = (
    *(b"X", b"", b" ", b"X Y", b"X\0", b"X\xff", b"Idempotency-Key", b"Last-Event-ID", b"Cookie", b"Authorization"),
    *(b"Accept", b"Accept-Encoding", b"If-None-Match", b"Content-Type", b"Content-Encoding", b"Range", b"TE"),
)
_VALUES = (
    *(
        b"",
        b" ",
        b"\t",
        b"\0",
        b"a\0b",
        b"\xff\xfe",
        b"a\rb",
        b"a\nb",
        b"a\r\n b",
        b"x" * 5_000,
        b"x" * 60_000,
        b"9" * 400,
    ),
    *(b"omni_rl_session=\xff", b"omni_rl_session=" + b"a" * 500, b"=;=;", b"Bearer", b"Bearer ", b"Bearer \xe9", b"-1"),
    *(b"Basic Og==", b"bearer  a  b", b"*/*;q=x", b"multipart/form-data", b"application/json; charset=\xff", b"a, b"),
)


def odd_request(given: Request, rng: random.Random) -> Request:
    """Return the request with an odd head."""
    return rng.choice(_ODD)(given, rng)


def _with(given: Request, name: bytes, value: bytes, answering: Answering = "always") -> Request:
    """Return the request with the header in place of what it was."""
    kept = tuple(header for header in given.headers if header[0].lower() != name.lower())
    return replace(given, headers=(*kept, (name, value)), answering=answering)


def _host(given: Request, rng: random.Random) -> Request:
    odd = (b"", b"[", b"[::1]", b"[::1", b"evil.example", b"localhost:99999", b"localhost:x", b"a@localhost", b"\xff")
    return _with(
        given, b"Host", rng.choice((*odd, b"127.0.0.1:1", b"LOCALHOST", b"x" * 4_000, b"localhost, b")), "perhaps"
    )


def _origin(given: Request, rng: random.Random) -> Request:
    odd = (b"null", b"http://[", b"http://localhost", b"//", b"http://\xff", b"https://evil.example", b"http://[::1]:x")
    return _with(given, rng.choice((b"Origin", b"Sec-Fetch-Site", b"Referer")), rng.choice((*odd, b"", b"cross-site")))


def _length(given: Request, rng: random.Random) -> Request:
    odd = (b"-1", b"0x10", b"1e3", b"", b"+5", b"1, 1", b"9" * 30, b"\xb2", b" ", b"5;", b"18446744073709551615")
    return _with(given, b"Content-Length", rng.choice(odd), "perhaps")


def _short(given: Request, rng: random.Random) -> Request:
    """Return a request that announces more than it sends."""
    more = len(given.body) + rng.choice((1, 100, 70_000, 10**9, 2**40))
    return _with(given, b"Content-Length", b"%d" % more, "waits")


def _long(given: Request, rng: random.Random) -> Request:
    """Return a request that announces less than it sends: what is left is not a request."""
    return _with(given, b"Content-Length", b"%d" % (len(given.body) // 2), "perhaps")


def _chunked(given: Request, rng: random.Random) -> Request:
    """Return a request in chunks, which is fine, or in invalid chunks."""
    kept = tuple(header for header in given.headers if header[0] != b"Content-Length")
    codings = (
        b"chunked",
        b"chunked",
        b"chunked",
        b"gzip, chunked",
        b"identity",
        b"chunked, chunked",
        b"CHUNKED",
        b"\xffx",
    )
    coding = rng.choice(codings)
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (given.body[:7], given.body[7:]) if piece)
    ends = (
        b"0\r\n\r\n",
        b"0\r\n\r\n",
        b"0\r\nTrailer: x\r\n\r\n",
        b"-1\r\n\r\n",
        b"zz\r\n",
        b"f" * 20 + b"\r\n",
        b"0;a=b\r\n\r\n",
    )
    both = ((b"Content-Length", b"3"),) if rng.random() < 0.1 else ()
    return replace(
        given,
        headers=(*kept, (b"Transfer-Encoding", coding), *both),
        body=body + rng.choice(ends),
        answering="perhaps",
    )


def _unfinished(given: Request, rng: random.Random) -> Request:
    """Return a request whose chunks, or whose head, has no end."""
    if rng.random() < 0.5:
        kept = tuple(header for header in given.headers if header[0] != b"Content-Length")
        return replace(given, headers=(*kept, (b"Transfer-Encoding", b"chunked")), body=b"5\r\nab", answering="waits")
    return Request("GET", b"/healthz HTTP/1.1\r\nHost: localhost\r\nX", version=b"", answering="waits")


def _twice(given: Request, rng: random.Random) -> Request:
    """Return a request with a header twice, with the same value or another."""
    name, value = rng.choice(given.headers)
    again = rng.choice((value, value + b"1", b"", b"x"))
    return replace(given, headers=(*given.headers, (name, again)), answering="perhaps")


def _header(given: Request, rng: random.Random) -> Request:
    """Return a request with a header of an odd name or value."""
    name, value = rng.choice(_NAMES), rng.choice(_VALUES)
    return _with(given, name, value, "perhaps")


def _many(given: Request, rng: random.Random) -> Request:
    """Return a request with more of a head than anybody needs."""
    count, size = rng.choice(((200, 10), (3_000, 10), (30, 8_000), (4, 120_000)))
    return replace(
        given, headers=(*given.headers, *((b"X-%d" % n, b"y" * size) for n in range(count))), answering="perhaps"
    )


def _line(given: Request, rng: random.Random) -> Request:
    """Return a request with an invalid first line."""
    match rng.randrange(8):
        case 0:
            methods = (
                "HEAD",
                "OPTIONS",
                "PATCH",
                "TRACE",
                "DELETE",
                "CONNECT",
                "get",
                "G\0T",
                "BREW",
                "X" * 300,
                "",
                "PRI",
            )
            return replace(given, method=rng.choice(methods), answering="perhaps")
        case 1:
            versions = (
                b"HTTP/1.0",
                b"HTTP/2.0",
                b"HTTP/0.9",
                b"HTTP/9.9",
                b"HTTP/1.1 ",
                b"http/1.1",
                b"",
                b"\xff",
                b"ICY",
            )
            return replace(given, version=rng.choice(versions), answering="perhaps")
        case 2:
            return replace(given, target=given.target + b"?" + b"a=b&" * rng.choice((10, 5_000)), answering="perhaps")
        case 3:
            target = b"http://" + rng.choice((b"localhost", b"[", b"evil.example", b"")) + given.target
            return replace(given, target=target, answering="perhaps")
        case 4:
            odd = (
                b"*",
                b"",
                b"//",
                b"/\xff",
                b"/ /",
                b"?",
                b"/" * 5_000,
                b"/v1//runs",
                b"/v1/runs/",
                b"\\",
                b"/%2e%2e/",
                b"/\0",
            )
            return replace(
                given,
                target=rng.choice((*odd, b"#", b"/#a", b"/;", b"localhost:443", b"/" + b"a" * 70_000)),
                answering="perhaps",
            )
        case 5:
            return replace(given, target=given.target.replace(b"/", b"//", 1), answering="perhaps")
        case 6:
            return replace(given, before=rng.choice((b"\r\n", b"\r\n\r\n", b"\n")), answering="perhaps")
        case _:
            return replace(
                given, before=rng.choice((b"\x16\x03\x01\x02\0\x01\0", b"\0", b"SSH-2.0\r\n")), answering="perhaps"
            )


def _folded(given: Request, rng: random.Random) -> Request:
    """Return a request with a header over two lines, as RFC 9112 (5.2) no longer allows."""
    name, value = rng.choice(given.headers)
    return _with(given, name, value[:3] + rng.choice((b"\r\n ", b"\r\n\t", b"\n ")) + value[3:], "perhaps")


def _upgrade(given: Request, rng: random.Random) -> Request:
    """Return a request that asks for another protocol."""
    wanted = rng.choice((b"websocket", b"h2c", b"TLS/1.0", b""))
    more = (
        *((b"Connection", rng.choice((b"Upgrade", b"upgrade, close", b"close"))), (b"Upgrade", wanted)),
        *((b"Sec-WebSocket-Version", b"13"), (b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ==")),
    )
    return replace(given, headers=(*given.headers, *more), answering="perhaps")


def _expects(given: Request, rng: random.Random) -> Request:
    return _with(given, b"Expect", rng.choice((b"100-continue", b"100-Continue", b"200-ok", b"")))


def _pipelined(given: Request, rng: random.Random) -> Request:
    """Return several requests at once."""
    count = rng.choice((1, 3, 20))
    first = bytes(Request("GET", b"/healthz", ((b"Host", b"localhost"),)))
    return replace(given, before=first * count, methods=(*("GET",) * count, given.method))


_ODD: tuple[Callable[[Request, random.Random], Request], ...] = (
    *(_host, _origin, _length, _short, _long, _chunked, _chunked, _unfinished, _twice, _header, _header, _header),
    *(_many, _line, _line, _folded, _upgrade, _expects, _pipelined),
)
