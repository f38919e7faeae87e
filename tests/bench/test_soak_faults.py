"""Which faults a soak has and when, what it makes of `/readyz`, and how a disk is filled and a clock set."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from omni_rl_bench.soak.chaos import Met
from omni_rl_bench.soak.ground import Clock
from omni_rl_bench.soak.mixed import unsaid
from omni_rl_bench.soak.plan import ENDING, SHOWN_SECONDS, SPARING, STARTING_ANEW, Fault, Plan
from omni_rl_bench.soak.readiness import Look, Readiness

FULL = """
from pathlib import Path
from omni_rl_bench.soak.chaos import Met
from omni_rl_bench.soak.ground import Disk
disk = Disk(Path("/dev/shm"))
disk.fill()
try:
    Path("/dev/shm/more").write_bytes(bytes(10))
    print("room")
except OSError:
    print("full")
disk.free()
Path("/dev/shm/more").write_bytes(bytes(10))
print("free")
"""


def first(plan: Plan, count: int, pace: float) -> list[tuple[Fault, float, float]]:
    return [(plan.next(n * pace), plan.gap(), plan.held()) for n in range(count)]


def test_a_seed_gives_the_same_faults_at_the_same_time() -> None:
    assert first(Plan(3, 30), 50, 15) == first(Plan(3, 30), 50, 15)
    assert first(Plan(3, 30), 50, 15) != first(Plan(4, 30), 50, 15)


@pytest.mark.parametrize(("minutes", "kinds"), [(3, SPARING + ENDING), (30, SPARING + ENDING + STARTING_ANEW)])
def test_a_round_has_every_fault_once(minutes: float, kinds: tuple[Fault, ...]) -> None:
    plan = Plan(1, minutes)
    met = [fault for fault, _, _ in first(plan, len(kinds), 10)]
    assert sorted(map(str, met)) == sorted(map(str, kinds))
    assert plan.round == kinds


def test_every_kind_of_process_is_stopped_and_killed() -> None:
    of = {
        how: {fault.what for fault in SPARING + ENDING + STARTING_ANEW if fault.how == how} for how in ("stop", "kill")
    }
    assert of["stop"] == {"coordinator", "bridge", "engine", "trainer", "rank 0", "rank 1", "head", "raylet"}
    assert of["kill"] == of["stop"] | {"job"}


def test_processes_that_are_followed_live_on_in_the_late_part() -> None:
    plan = Plan(1, 30)
    first(plan, 30, 20)
    late = {plan.next(0.5 * 1800 + n) for n in range(60)}
    assert late == set(SPARING)


def test_a_slow_round_is_ended_before_the_late_part_begins() -> None:
    plan = Plan(1, 30)
    met = {plan.next(0.3 * 1800 + 30.0 * n) for n in range(len(plan.round))}
    assert met == set(plan.round)


def test_a_look_tells_when_a_fault_was_shown() -> None:
    readiness = Readiness([Look(1.0, True), Look(2.0, False, "the trainer is stopped"), Look(3.0, True)])
    shown = readiness.first_unready(0.5, 9.0)
    assert shown is not None
    assert (shown.at, shown.reason) == (2.0, "the trainer is stopped")
    assert readiness.first_unready(2.5, 9.0) is None
    assert readiness.only_ready(2.5, 9.0)
    assert not readiness.only_ready(0.5, 2.5)
    assert not readiness.only_ready(5.0, 9.0), "nobody looked"


@pytest.mark.parametrize(
    ("spans", "wrong"),
    [
        ([{"version": "r/1", "start": 0, "end": 4}], []),
        ([{"version": "r/1", "start": 0, "end": 1}, {"version": "r/2", "start": 1, "end": 4}], []),
        ([{"version": "r/1", "start": 0, "end": 3}], ["the weights of 4 tokens are said for 3"]),
        (
            [{"version": "r/1", "start": 0, "end": 2}, {"version": "r/2", "start": 1, "end": 4}],
            ["the weights of token 2 are not said"],
        ),
        ([{"version": "", "start": 0, "end": 4}], ["the weights of token 0 are not said"]),
        (None, ["the weights of 4 tokens are said for 0"]),
    ],
)
def test_a_token_without_its_version_is_found(spans: list[dict[str, object]] | None, wrong: list[str]) -> None:
    assert list(unsaid({"ids": [1, 2, 3, 4], "version_spans": spans})) == wrong


def test_a_disk_is_filled_and_freed() -> None:
    mount = f"mount -t tmpfs -o size=1m tmpfs /dev/shm && exec {sys.executable} -c '{FULL}'"
    done = subprocess.run(["unshare", "--mount", "sh", "-c", mount], capture_output=True, text=True)
    if "perm" in done.stderr.lower():
        pytest.skip("only root may mount a file system")
    assert done.stdout == "full\nfree\n", done.stderr


def test_a_clock_is_set_for_a_process_that_runs(tmp_path: Path) -> None:
    clock = Clock(tmp_path / "clock")
    code = "import time, sys\nfor line in sys.stdin: time.sleep(0.01); print(time.time(), flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | clock.environment,
        bufsize=1,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for far in (0, 5400, -5400, 0):
            clock.set(far)
            process.stdin.write("\n")
            assert float(process.stdout.readline()) - time.time() == pytest.approx(far, abs=60)
        process.stdin.close()


def test_what_has_to_be_shown_has_its_time() -> None:
    met = Met("stop", "trainer", 10.0, 30.0, None, "", 1.0, 60.0, shows=True)
    assert met.unseen
    assert not Met("stop", "trainer", 10.0, 30.0, 4.0, "", 1.0, 60.0, shows=True).unseen
    assert not Met("stop", "trainer", 10.0, 10.0 + SHOWN_SECONDS - 1, None, "", 1.0, 60.0, shows=True).unseen
    assert not Met("fill", "shared memory", 10.0, 40.0, None, "", 1.0, 60.0, shows=False).unseen
