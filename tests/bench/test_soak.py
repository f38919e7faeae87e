"""What a soak counts: failures apart from those that a death explains, what was lost, growth, and what became slow."""

import threading
from typing import Any

import pytest

from omni_rl.errors import NotFoundError
from omni_rl_bench.own_service import require_loopback
from omni_rl_bench.result import BenchmarkError
from omni_rl_bench.soak.callers import Callers
from omni_rl_bench.soak.measure import Calls, rises
from omni_rl_bench.soak.memory import KINDS
from omni_rl_bench.soak.results import goals

MET = {"how": "kill", "whole_after": 2.0, "within": 60.0, "unseen": False}
GOOD: dict[str, Any] = {
    "minutes": 9.0,
    "lost": [],
    "twice": [],
    "steps_of_jobs": 16,
    "mixed": [],
    "faults_missing": [],
    "ready_and_not_able": [],
    "said_to_be_silent": [],
    "said_to_be_away": [],
    "jobs_whose_trainer_was_killed": 0,
    "events_missed": 0,
    "events_twice": 0,
    "failed": [],
    "callers_broken": [],
    "faults": [MET] * 9,
    "jobs": {"succeeded": 2},
    "memory_mib": {kind: {"first": 100.0, "last": 101.0, "ratio": 1.01} for kind in set(KINDS.values())},
    "calls": {"seal": {"count": 900, "first": {"p50": 0.01, "p99": 0.02}, "last": {"p50": 0.011, "p99": 0.03}}},
}


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
    assert [trouble.call for trouble in calls.troubles] == ["meanwhile", "across a death"]
    assert list(calls.seconds) == ["fine"]


def test_a_programming_error_is_not_counted_away() -> None:
    with pytest.raises(KeyError), Calls().timed("wrong"):
        raise KeyError("no error of the service")


def test_load_that_ended_early_is_told() -> None:
    callers = Callers()
    forever = threading.Event()

    def wrong(number: int) -> None:
        raise KeyError(number)

    def stuck() -> None:
        forever.wait()

    callers.start(callers.ended.wait)
    callers.start(wrong, 3)
    callers.start(stuck)
    callers.join(0.5)
    forever.set()
    assert callers.broken == ["wrong(3,): KeyError: 3", "stuck: did not end"]


def test_thirds_are_compared_where_there_are_enough_calls() -> None:
    calls = Calls()
    calls.seconds["seal"] = [(at / 10, 0.01 if at < 600 else 0.03) for at in range(900)]
    calls.seconds["check"] = [(float(at), 5.0) for at in range(0, 90, 20)]
    figures = calls.figures(90)
    assert figures["seal"]["first"] == {"p50": 0.01, "p99": 0.01}
    assert figures["check"] == {"count": 5, "first": {}, "last": {}}
    assert rises(figures, "p50") == [pytest.approx(3.0)]


def test_a_good_soak_meets_every_goal() -> None:
    assert [goal.name for goal in goals(GOOD) if not goal.met] == []


@pytest.mark.parametrize(
    ("found", "unmet"),
    [
        ({"lost": ["sync 3f1c"]}, "acknowledged"),
        ({"events_twice": 1}, "events"),
        ({"failed": ["state: RayUnavailableError: x"] * 30}, "calls failed"),
        ({"callers_broken": ["post: KeyError: 3"]}, "callers"),
        ({"twice": ["step posted-0/3"]}, "steps and syncs that are there twice"),
        ({"steps_of_jobs": 0}, "steps of jobs that were looked at"),
        ({"mixed": ["step job-0/3 is at pause"]}, "steps of jobs with tokens of other weights"),
        ({"faults": [MET]}, "faults"),
        ({"faults": [MET | {"how": "stop"}] * 9}, "deaths"),
        ({"faults_missing": ["stop engine"]}, "kinds of fault"),
        ({"faults": [MET | {"whole_after": None}] * 3}, "faults that the service did not get over"),
        ({"faults": [MET | {"whole_after": 61.0}] * 3}, "faults that it got over later"),
        ({"faults": [MET | {"unseen": True}] * 3}, "faults that /readyz did not show"),
        ({"ready_and_not_able": ["sync: SyncRolledBackError: x"]}, "work refused"),
        ({"said_to_be_silent": ["posted-0"]}, "live runs"),
        ({"said_to_be_away": ["trainer is dead."]}, "members"),
        ({"jobs": {"succeeded": 2, "running": 1}}, "jobs failed or unfinished"),
        ({"jobs": {"succeeded": 2, "failed": 2}, "jobs_whose_trainer_was_killed": 1}, "jobs failed or unfinished"),
        ({"jobs": {}}, "jobs succeeded"),
        ({"memory_mib": {"engine": {"first": 1.0, "last": 1.0, "ratio": 1.0}}}, "kinds of process"),
        ({"memory_mib": GOOD["memory_mib"] | {"engine": {"ratio": 1.2}}}, "memory, the process of ours"),
        ({"memory_mib": GOOD["memory_mib"] | {"Ray's gcs_server": {"ratio": 1.2}}}, "memory, the process of Ray's"),
        ({"calls": {"seal": {"count": 900, "first": {"p50": 0.01}, "last": {"p50": 0.02}}}}, "p50"),
        ({"calls": {"seal": {"count": 900, "first": {"p99": 0.01}, "last": {"p99": 0.02}}}}, "p99"),
        ({"calls": {}}, "p50"),
    ],
)
def test_each_fault_fails_its_goal(found: dict[str, Any], unmet: str) -> None:
    assert any(goal.name.startswith(unmet) for goal in goals(GOOD | found) if not goal.met)


@pytest.mark.parametrize("url", ["http://192.0.2.7:8400", "http://0.0.0.0:8400", "http://coordinator:8400", "nonsense"])
def test_load_stays_on_this_machine(url: str) -> None:
    with pytest.raises(BenchmarkError, match="loopback"):
        require_loopback(url)
    require_loopback("http://127.0.0.1:8400")
    require_loopback("http://[::1]:8400")
