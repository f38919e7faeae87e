"""The bridge answers calls from threads: those that take long keep no other call waiting."""

import contextlib
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from omni_rl.bridge.child import THREADS, Attachment, Child
from omni_rl.bridge.protocol import SIGNATURES, VERSION, BridgeCall, Method, Reply, Start, decode, encode, pack
from omni_rl.bridge.seam import CheckRequest, CheckResult, ClusterState, SyncRequest
from omni_rl.bridge.settings import ClusterSettings
from omni_rl.sync.result import SyncResult

SETTINGS = ClusterSettings(
    address="127.0.0.1:1", dashboard="http://127.0.0.1:1", run="up-1", model=Path("small"), ledger="sqlite:///ledger.db"
)
TAKES: dict[Method, Any] = {"pause": "maintenance", "check": CheckRequest(), "sync": SyncRequest(sync="s")}


class Pair:
    """A cluster and its jobs. A check waits for a sync, as it does after an update; a sync and a question about jobs
    wait for `go`."""

    def __init__(self) -> None:
        self.go, self.synced = threading.Event(), threading.Event()

    def all(self) -> list[Any]:
        self.go.wait(30)
        return []

    def sync(self, request: SyncRequest, observe: Any) -> SyncResult:
        self.go.wait(30)
        self.synced.set()
        return SyncResult(request.sync, "committed", "r/1/1/d", "r/1/1/d")

    def check(self, request: CheckRequest) -> CheckResult:
        self.synced.wait(30)
        return CheckResult("r/1/1/d", {})

    def pause(self, reason: str) -> None: ...
    def resume(self) -> None: ...
    def state(self) -> ClusterState:
        return ClusterState(connected=True)


@contextlib.contextmanager
def coordinator(pair: Pair) -> Iterator[socket.socket]:
    """The coordinator's end of a bridge that is attached to `pair`. At the end, whatever waits goes on."""
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    with ours, theirs:
        child = Child(theirs)
        child._attachment = Attachment(cast(Any, pair), cast(Any, pair))
        reading = threading.Thread(target=child.run, daemon=True)
        reading.start()
        ours.sendall(encode(Start(VERSION, SETTINGS, None)))
        try:
            yield ours
        finally:
            pair.go.set()
            pair.synced.set()
            ours.close()
            reading.join(10)
        assert not reading.is_alive()


def call(ours: socket.socket, number: int, method: Method) -> None:
    takes, _ = SIGNATURES[method]
    ours.sendall(encode(BridgeCall(number, method, None if takes is None else pack(takes, TAKES[method]))))


def answered(ours: socket.socket, count: int) -> set[int]:
    """The numbers of the next calls that are answered."""
    with ours.makefile("rb") as lines:
        answers = [decode(lines.readline()) for _ in range(count)]
    return {answer.id for answer in answers if isinstance(answer, Reply)}


@pytest.mark.parametrize("long", ["jobs", "check", "sync"])
def test_the_gate_and_the_state_wait_for_no_call_that_takes_long(long: Method) -> None:
    with coordinator(Pair()) as ours:
        for number in range(2 * THREADS):
            call(ours, number, long)
        call(ours, 97, "pause")
        call(ours, 98, "state")
        call(ours, 99, "resume")
        assert answered(ours, 3) == {97, 98, 99}


def test_checks_do_not_keep_the_sync_that_they_wait_for_waiting() -> None:
    pair = Pair()
    pair.go.set()
    with coordinator(pair) as ours:
        for number in range(2 * THREADS):
            call(ours, number, "check")
        call(ours, 99, "sync")
        assert answered(ours, 2 * THREADS + 1) == {*range(2 * THREADS), 99}


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
