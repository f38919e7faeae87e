"""What a soak counts: failures apart from those that a death explains, growth, and what became slow."""

import subprocess
import sys
import time
from typing import Any

import pytest

from omni_rl.bench.soak.command import _goals, _memory
from omni_rl.bench.soak.measure import Calls, memory
from omni_rl.errors import NotFoundError
from omni_rl.service.state import MARK


def gone() -> None:
    raise NotFoundError("gone")


def test_a_failure_while_something_is_dead_is_no_fault_and_its_seconds_do_not_count() -> None:
    calls = Calls()
    with calls.timed("fine"):
        pass
    with calls.timed("broken"):
        gone()
    with calls.dead(), calls.timed("meanwhile"):
        gone()
    with calls.timed("across a death"):
        with calls.dead():
            pass
        gone()
    with calls.timed("slow for a death"), calls.dead():
        pass
    assert calls.failed == ["broken: NotFoundError: gone"]
    assert calls.failed_meanwhile == 2
    assert list(calls.seconds) == ["fine"]


def test_a_programming_error_is_not_counted_away() -> None:
    with pytest.raises(KeyError), Calls().timed("wrong"):
        raise KeyError("no error of the service")


def test_quarters_are_compared_by_their_medians() -> None:
    sizes = [(float(at), {"engine": 100.0 if at < 60 else 120.0, "late": 5.0}) for at in range(0, 80, 5)]
    assert _memory(sizes, 80)["engine"] == {"second": 100.0, "last": 120.0}
    calls = Calls()
    calls.seconds["seal"] = [(at / 10, 0.01 if at < 600 else 0.03) for at in range(800)]
    figures = calls.figures(20)
    assert figures["seal"]["second"]["p50"] == 0.01
    results: dict[str, Any] = {
        "steps_lost": 0,
        "events_missed": 0,
        "failed": [],
        "deaths": [{"what": "engine", "at": 1.0, "whole_after": None}],
        "jobs": {"succeeded": 2, "failed": 1},
        "memory_mib": _memory(sizes, 80),
        "calls": figures,
    }
    unmet = {goal.name.split(",")[0]: goal.value for goal in _goals(results) if not goal.met}
    assert unmet == {
        "deaths that the service did not get over": 1,
        "jobs failed": 1,
        "memory": pytest.approx(1.2),
        "median latency": pytest.approx(3.0),
    }


def test_memory_is_counted_by_role_and_only_of_the_service_itself() -> None:
    code = "import time; kept = bytearray(64 * 2**20); time.sleep(60)  # services.coordinator"
    mine = subprocess.Popen([sys.executable, "-c", code], env={MARK: "soaked"})
    others = subprocess.Popen([sys.executable, "-c", code], env={MARK: "another"})
    try:
        deadline = time.monotonic() + 20
        while memory("soaked").get("coordinator", 0) < 64 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert 64 <= memory("soaked")["coordinator"] < 100
    finally:
        mine.kill()
        others.kill()
        mine.wait()
        others.wait()
