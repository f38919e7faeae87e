"""SIGSTOP: a stopped replica is told from a dead one, a stopped coordinator changes nothing when it wakes up."""

import os
import signal
import time

import pytest

from omni_rl.processes import life
from tests.chaos.conftest import Scene
from tests.chaos.fake_engine import Faults
from tests.chaos.parties import STOPPED_AFTER, Job, Strike
from tests.chaos.test_kills import FORWARD, SLOW, goes_through

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("point", ["pause", "apply", "verify", "commit", "resume"])
def test_a_stopped_replica_is_named_as_such_and_replaced(scene: Scene, point: str) -> None:
    assert scene.coordinate(Job()) is not None
    scene.fault("r1", Faults(delay=SLOW))
    stopped = scene.home.pid("r1")
    outcome = scene.coordinate(Job(1, Strike(point, "r1", signal.SIGSTOP)))
    assert outcome is not None
    committed = goes_through(point, "r1")
    said = outcome["result"]["replaced"]["r1"] if committed else outcome["error"]
    assert f"process {stopped} is stopped, not dead" in said
    assert life(stopped) == "gone", "its successor must be the only one"
    scene.expect_all_serve(1 if committed else 0)


def test_a_dead_replica_is_named_as_such(scene: Scene) -> None:
    assert scene.coordinate(Job()) is not None
    dead = scene.home.pid("r0")
    outcome = scene.coordinate(Job(1, Strike("apply", "r0")))
    assert outcome is not None
    assert f"process {dead} is gone" in outcome["error"]
    assert "stopped" not in outcome["error"]


def test_the_others_do_not_wait_for_a_stopped_replica(scene: Scene) -> None:
    """r0's gate is closed for little longer than it takes to see that r1 is stopped."""
    assert scene.coordinate(Job()) is not None
    scene.begin(Job(1, Strike("apply", "r1", signal.SIGSTOP)))
    while scene.status("r0").standing == "serving":
        time.sleep(0.002)
    closed = time.monotonic()
    while scene.status("r0").standing != "serving":
        time.sleep(0.002)
    assert time.monotonic() - closed < 5 * STOPPED_AFTER


@pytest.mark.parametrize("point", FORWARD)
def test_a_stopped_coordinator_is_fenced_off(scene: Scene, point: str) -> None:
    assert scene.coordinate(Job()) is not None
    scene.fault("r1", Faults(delay=SLOW))
    old = scene.begin(Job(1, Strike(point, "coordinator", signal.SIGSTOP)))
    deadline = time.monotonic() + 20
    while life(old) != "stopped":
        assert time.monotonic() < deadline, scene.log("coordinator")
        time.sleep(0.005)
    scene.end_faults()
    refused = scene.coordinate(Job(), "second")
    assert refused is not None
    assert refused["code"] == "coordinator_running"
    assert f"process {old}" in refused["error"]
    assert scene.coordinate(Job(force=True), "second") is not None
    expected = 1 if goes_through(point, "coordinator") else 0
    scene.expect_all_serve(expected)

    os.kill(old, signal.SIGCONT)
    while life(old) != "gone":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    outcome = scene.outcome()
    assert outcome is not None
    assert outcome["code"] == "fenced"
    scene.expect_all_serve(expected)
