"""Ray's dashboard may be stopped: whoever asks it for jobs is told, and nobody else waits."""

import select
import socket
import threading
import time
from pathlib import Path
from typing import Any, cast

import pytest

from omni_rl.bridge import jobs
from omni_rl.bridge.child import THREADS, Attachment, Child
from omni_rl.bridge.jobs import RayJobs
from omni_rl.bridge.protocol import SIGNATURES, VERSION, BridgeCall, Reply, Start, decode, encode, pack
from omni_rl.bridge.settings import ClusterSettings
from omni_rl.errors import RayUnavailableError

SETTINGS = ClusterSettings(
    address="127.0.0.1:1", dashboard="http://127.0.0.1:1", run="up-1", model=Path("small"), ledger="sqlite:///ledger.db"
)


def test_a_dashboard_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "TIMEOUT", (1.0, 0.3))
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        with pytest.raises(RayUnavailableError, match="timed out"):
            RayJobs(f"http://{host}:{port}", {}).all()
    assert time.monotonic() - began < 20


def test_a_pause_does_not_wait_for_calls_about_jobs() -> None:
    go, paused = threading.Event(), threading.Event()

    class Jobs:
        def all(self) -> list[Any]:
            go.wait(30)
            return []

    class Cluster:
        def pause(self, reason: str) -> None:
            paused.set()

    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = Child(theirs)
        child._attachment = Attachment(cast(Any, Cluster()), cast(Any, Jobs()))
        reading = threading.Thread(target=child.run, daemon=True)
        reading.start()
        ours.sendall(encode(Start(VERSION, SETTINGS, None)))
        for number in range(2 * THREADS):
            ours.sendall(encode(BridgeCall(number, "jobs", None)))
        ours.sendall(encode(BridgeCall(99, "pause", pack(SIGNATURES["pause"][0], "maintenance"))))
        assert paused.wait(10)
        answer = decode(ours.makefile("rb").readline())
        assert isinstance(answer, Reply)
        assert answer.id == 99
        go.set()
        ours.close()
        reading.join(10)
        assert not reading.is_alive()


def test_a_coordinator_that_is_killed_with_answers_unread_ends_the_bridge() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reading = threading.Thread(target=Child(theirs).run)
        reading.start()
        ours.sendall(encode(Start(VERSION, SETTINGS, None)))
        ours.sendall(encode(BridgeCall(1, "state", None)))
        assert select.select([ours], [], [], 10)[0]
        ours.close()
        reading.join(10)
        assert not reading.is_alive()  # an exception of its thread would fail this test as well
