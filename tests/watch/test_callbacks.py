"""What a watcher's callback may do, and what is true once a watcher was flushed or closed."""

import sys
import threading
from collections.abc import Iterator

import pytest

from omni_rl.api.steps import Verdict
from omni_rl.watch.place import PostingRank
from tests.services.live import live
from tests.watch.steps import step_of
from tests.watch.test_watcher import watcher

FOR_EVER = 600.0
"""Seconds that no test waits."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with live(tmp_path_factory.mktemp("callbacks")) as address:
        yield address


def test_a_callback_that_exits_ends_no_posting(url: str, caplog: pytest.LogCaptureFixture) -> None:
    run = watcher(url, "exits", on_verdict=lambda verdict: sys.exit(3))
    for seed in range(3):
        run.step(**step_of(seed))
    assert run.flush(30)
    assert run.counts.sealed == 3
    assert "on_verdict failed at step 0" in caplog.text
    run.close()


def test_a_step_has_arrived_once_its_verdict_was_told(url: str) -> None:
    begun, end = threading.Event(), threading.Event()

    def tell(verdict: Verdict) -> None:
        begun.set()
        end.wait(60)

    run = watcher(url, "told", on_verdict=tell)
    run.step(**step_of(0))
    assert begun.wait(60)
    assert not run.flush(0.1)
    end.set()
    assert run.flush(30)
    run.close()


def test_a_callback_may_close_its_watcher(url: str) -> None:
    closed = threading.Event()

    def close(verdict: Verdict) -> None:
        run.close(FOR_EVER)
        closed.set()

    run = watcher(url, "closes", on_verdict=close)
    run.step(**step_of(0))
    assert closed.wait(60)


def test_a_watcher_ends_once(caplog: pytest.LogCaptureFixture) -> None:
    run = watcher("http://127.0.0.1:9", "closed-twice")
    run.step(**step_of(0))
    run.close(0)
    run.close(FOR_EVER)
    assert not run.flush(FOR_EVER)
    assert caplog.text.count("did not arrive") == 1


def test_a_conflicting_step_is_refused_once(url: str) -> None:
    first, again = (watcher(url, "conflict", place=PostingRank(0, 2), attempt=1, others=0.1) for _ in range(2))
    first.step(**step_of(0))
    assert first.flush(30)
    again.step(**step_of(1))
    assert again.flush(30)
    assert again.counts.refused == 1
    for run in (first, again):
        run.close()
