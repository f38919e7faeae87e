"""Clients that send half a head, half a body, or a byte a second, or do not read: they are let go of, and nobody waits
for them."""

import contextlib
import json
import random
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from blake3 import blake3
from omni_rl_services.coordinator import bodies, connections, memory
from omni_rl_services.coordinator.auth import new_token
from omni_rl_services.coordinator.settings import Bounds, TokenEntry

from omni_rl.api.runs import RunBody
from omni_rl.api.state import Scope
from omni_rl.client import Client
from tests.services.live import live
from tests.services.posted import ARROW, CALM

MIB = 1 << 20
PICTURE = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 64, 64, 8, 2, 0, 0, 0)
PART = "/v1/runs/math/attempts/1/steps/{step}/parts/0"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rules in a tenth of the time."""
    monkeypatch.setattr(bodies, "SILENT_SECONDS", 1.0)
    monkeypatch.setattr(bodies, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(memory, "WAIT_SECONDS", 5.0)
    monkeypatch.setattr(connections, "HEAD_SECONDS", 1.0)
    monkeypatch.setattr(connections, "UNREAD_SECONDS", 1.0)


@contextlib.contextmanager
def opened(url: str, *, send: bytes = b"") -> Iterator[socket.socket]:
    at = httpx.URL(url)
    with socket.create_connection((at.host, at.port), timeout=10) as connection:
        connection.sendall(send)
        yield connection


def head(step: int, size: int, **more: str) -> bytes:
    """Of a part of so many bytes."""
    headers = {"Host": "localhost", "Content-Type": ARROW, "Content-Length": str(size)}
    lines = [f"{name}: {value}" for name, value in (headers | more).items()]
    return "\r\n".join([f"PUT {PART.format(step=step)} HTTP/1.1", *lines, "", ""]).encode()


def answer(connection: socket.socket) -> tuple[int, str]:
    """Status and code of what comes before the connection is closed."""
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    first, _, rest = received.partition(b"\r\n")
    return int(first.split()[1]), json.loads(rest.partition(b"\r\n\r\n")[2])["code"]


def posts_at_once(url: str, step: int) -> None:
    with Client(url) as client:
        began = time.monotonic()
        client.put_part("math", 1, step, 0, CALM)
        client.seal("math", 1, step, parts=1)
        assert time.monotonic() - began < memory.WAIT_SECONDS - 1


def test_stalled_uploads_do_not_stop_others(tmp_path: Path) -> None:
    """Each announces as much as there is room for, and sends nothing more."""
    bounds = Bounds(part=64 * MIB, memory=1024 * MIB)
    with live(tmp_path, bounds=bounds) as url, Client(url) as client:
        client.create_run(RunBody(run="math", model="m", dtype="float32", framework="mine"))
        with contextlib.ExitStack() as stack:
            stalled = [stack.enter_context(opened(url, send=head(9, 64 * MIB) + b"x" * 1000)) for _ in range(6)]
            posts_at_once(url, 0)
            assert {answer(one) for one in stalled} <= {(408, "too_slow"), (429, "too_many")}
        assert [line.step for line in client.steps("math")] == [0]


def test_a_body_that_trickles_is_ended(tmp_path: Path) -> None:
    with live(tmp_path) as url, Client(url) as client:
        client.create_run(RunBody(run="math", model="m", dtype="float32", framework="mine"))
        with opened(url, send=head(0, MIB)) as slow:
            with contextlib.suppress(OSError):
                for _ in range(30):
                    slow.sendall(b"x")
                    time.sleep(0.1)
            assert answer(slow) == (408, "too_slow")


@pytest.mark.slow
def test_one_that_is_slow_keeps_its_room_unless_others_wait(tmp_path: Path) -> None:
    """The client sends 200 KiB a second, and there is memory for one body."""
    bounds = Bounds(part=16 * MIB, memory=64 * MIB)  # an eighth is for bodies
    with live(tmp_path, bounds=bounds) as url, Client(url) as client:
        client.create_run(RunBody(run="math", model="m", dtype="float32", framework="mine"))

        def sends(connection: socket.socket, pieces: int) -> None:
            for _ in range(pieces):
                connection.sendall(b"x" * 20_480)
                time.sleep(0.1)

        with opened(url, send=head(0, 40 * 20_480)) as alone:
            sends(alone, 40)
            assert answer_of_whole(alone) == (422, "invalid_records")
        with opened(url, send=head(0, 8 * MIB)) as slow, opened(url) as other:
            sends(slow, 8)
            other.sendall(head(1, 2 * MIB) + bytes(2 * MIB))
            with contextlib.suppress(OSError):
                sends(slow, 20)
            assert answer(slow) == (408, "too_slow")
            assert answer_of_whole(other) == (422, "invalid_records")


def test_who_does_not_read_an_answer_is_let_go_of_and_who_reads_slowly_has_all_of_it(tmp_path: Path) -> None:
    picture = PICTURE + random.Random(0).randbytes(24 * MIB)
    digest = blake3(picture).hexdigest()
    asked = f"GET /v1/media/{digest} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    with live(tmp_path) as url, Client(url) as client:
        assert client.put_media(picture, "image/png").digest == digest
        with opened(url, send=asked) as slow, opened(url, send=asked) as stalled:
            received = bytearray()
            while chunk := slow.recv(4 * MIB):
                received += chunk
                time.sleep(0.02)
            assert received.endswith(picture[-MIB:])
            assert len(received) > len(picture)
            time.sleep(2.0)  # twice as long as anybody may
            unread = 0
            with contextlib.suppress(ConnectionResetError):
                while chunk := stalled.recv(MIB):
                    unread += len(chunk)
            assert unread < len(picture)


def answer_of_whole(connection: socket.socket) -> tuple[int, str]:
    """The same where the connection stays open."""
    received = b""
    while b'"code"' not in received:
        received += connection.recv(65536)
    first, _, rest = received.partition(b"\r\n")
    return int(first.split()[1]), json.loads(rest.partition(b"\r\n\r\n")[2])["code"]


def test_half_sent_heads_are_let_go_of_and_more_than_there_is_room_for_keep_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "WAITING", 20)
    monkeypatch.setattr(connections, "HEAD_SECONDS", 30.0)
    with live(tmp_path) as url, contextlib.ExitStack() as stack:
        half = [stack.enter_context(opened(url, send=b"GET /healthz HTTP/1.1\r\nHost: loc")) for _ in range(60)]
        assert httpx.get(f"{url}/healthz").status_code == 200
        assert [one.recv(1) for one in half[:30]] == [b""] * 30
        half[-1].settimeout(0.2)
        with pytest.raises(TimeoutError):
            half[-1].recv(1)


@pytest.mark.parametrize("before", [b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"])
def test_a_head_has_to_end_the_first_and_every_later_one(tmp_path: Path, before: bytes) -> None:
    with live(tmp_path) as url, opened(url, send=before) as connection:
        if before:
            assert b'"ok"' in connection.recv(65536)
        began = time.monotonic()
        with contextlib.suppress(OSError):
            for byte in b"GET /healthz HTTP/1.1\r\nHost: localhost" * 3:
                connection.sendall(bytes([byte]))
                time.sleep(0.05)
        assert connection.recv(1) == b""
        assert time.monotonic() - began < 4


def test_who_is_not_known_sends_no_large_body(tmp_path: Path) -> None:
    token, kept = new_token()
    with live(tmp_path, tokens=[TokenEntry(name="me", scope=Scope.ADMIN, sha256=kept)]) as url:
        for given in ({}, {"Authorization": "Bearer orl_wrong"}, {"Cookie": "omni_rl_session=wrong"}):
            with opened(url, send=head(0, MIB, **given)) as unknown:
                assert answer(unknown) == (401, "unauthenticated")
        with opened(url, send=head(0, MIB, Authorization=f"Bearer {token}") + bytes(MIB)) as known:
            assert answer_of_whole(known) == (404, "not_found")
