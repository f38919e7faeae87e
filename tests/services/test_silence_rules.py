"""When a run counts as silent, second by second, and what is then told of it; and who holds the gate."""

import asyncio
from typing import Any

import pytest
from omni_rl_services.coordinator.gate import Gate
from omni_rl_services.coordinator.lines import Line
from omni_rl_services.coordinator.runs import LiveRun
from omni_rl_services.coordinator.silence import Silence

from omni_rl.api.runs import RunBody
from omni_rl.consistency.incidents import GoodStep
from omni_rl.errors import RayUnavailableError
from omni_rl.ledger.types import IncidentEnd, NewEvent, NewState, StepKey
from tests.services.fake_bridge import FakeBridge

pytestmark = pytest.mark.anyio
AFTER = 600.0
START = 1_800_000_000.0


class World:
    """A ledger in which every run is due, clocks that a test moves, and a gate."""

    def __init__(self) -> None:
        self.runs: dict[str, LiveRun] = {}
        self.now = self.even = 0.0
        self.asked: list[tuple[float, int]] = []
        self.states: list[tuple[str, NewState]] = []
        self.gate = Gate(FakeBridge())
        fake: Any = self
        self.silence = Silence(fake, fake, self.gate, lambda: START + self.now, lambda: self.even)

    def add(self, name: str = "math", *, sealed: float | None = START, activity: Any = "live", **said: Any) -> LiveRun:
        run = LiveRun.of(RunBody(run=name, model="m", dtype="bfloat16", **said), 1.0, 3, AFTER)
        run.activity, run.line = activity, Line(2, 7, sealed, good=GoodStep(2, 6, "v"))
        run.latest = (2, 7)
        self.runs[name] = run
        return run

    def passes(self, seconds: float) -> None:
        self.now += seconds
        self.even += seconds

    async def overdue(self, now: float, limit: int) -> list[str]:
        self.asked.append((now, limit))
        return list(self.runs)

    async def one(self, name: str) -> LiveRun:
        return self.runs[name]

    async def put_state(self, name: str, state: NewState) -> None:
        self.states.append((name, state))


@pytest.mark.parametrize(
    ("said", "seconds", "silent"),
    [
        ({}, AFTER, False),
        ({}, AFTER + 0.5, True),
        ({"silent_after": 10.0}, 10.0, False),
        ({"silent_after": 10.0}, 10.5, True),
        ({"sealed": None}, 10 * AFTER, False),
        ({"activity": "waiting"}, 10 * AFTER, False),
        ({"activity": "silent"}, 10 * AFTER, False),
        ({"activity": "ended"}, 10 * AFTER, False),
        ({"gated": True}, AFTER + 0.5, True),
    ],
)
async def test_a_live_run_is_silent_once_its_time_is_over(said: dict[str, Any], seconds: float, silent: bool) -> None:
    world = World()
    run = world.add(**said)
    before = run.activity
    world.passes(seconds)
    assert await world.silence.look() is silent
    assert run.activity == ("silent" if silent else before)
    assert len(world.states) == silent
    assert world.asked == [(START + seconds, 100)]


async def test_what_is_told_of_a_silent_run() -> None:
    world = World()
    world.add(silent_after=3600.0)
    world.passes(3601.0)
    assert await world.silence.look()
    ((name, state),) = world.states
    (seen,) = state.seen
    assert name == "math"
    assert seen.headline == (
        "Step 7 was the last. No step came for longer than 1:00:00: the run ended without saying so, hangs, or posts "
        "no more."
    )
    assert (seen.severity, seen.kind, seen.good) == (2, "silence", GoodStep(2, 6, "v"))
    assert (state.key, state.over) == (StepKey("math", 2, 7), ())
    assert tuple(state.events) == (NewEvent("activity", {"before": "live", "after": "silent"}, "math"),)
    assert state.place.due is None


async def test_what_is_told_of_a_run_of_an_older_ledger_names_no_step() -> None:
    world = World()
    run = world.add()
    run.line, run.latest = Line(None, None, START), None
    world.passes(AFTER + 1)
    assert await world.silence.look()
    ((_, state),) = world.states
    assert state.seen[0].headline.startswith("No step came for longer than 0:10:00: ")
    assert state.key is None


@pytest.mark.parametrize("activity", ["ended", "live"])
async def test_what_ends_a_silence_ends_its_incident(activity: Any) -> None:
    world = World()
    run = world.add(activity="silent")
    await world.silence.enter(run, activity)
    ((_, state),) = world.states
    assert (state.seen, state.over) == ((), (IncidentEnd("silence", f"the run is {activity}"),))
    assert run.activity == activity


async def test_runs_are_told_of_one_by_one_and_a_step_that_came_meanwhile_counts() -> None:
    world = World()
    late, other = world.add("late"), world.add("other")
    world.passes(AFTER + 1)
    async with late.turn:
        looking = asyncio.create_task(world.silence.look())
        for _ in range(5):
            await asyncio.sleep(0)
        late.line = Line(2, 8, START + world.now)
    assert await looking
    assert (late.activity, other.activity) == ("live", "silent")


@pytest.mark.parametrize(
    ("seconds", "counts"),
    [(4.9, False), (5.0, False), (5.1, True), (-4.9, False), (-5.0, False), (-5.1, True), (1e6, True)],
)
async def test_a_clock_that_is_set_by_more_than_five_seconds_gives_every_run_its_time_again(
    seconds: float, counts: bool
) -> None:
    world = World()
    run = world.add(sealed=START - 1e7 if seconds < 0 else START)
    world.passes(1.0)
    world.now += seconds
    await world.silence.look()
    run.activity, run.line = "live", Line(2, 7, START - 1e7)
    world.passes(AFTER)
    assert await world.silence.look() is (not counts)
    run.activity = "live"
    world.passes(0.5)
    assert await world.silence.look()


async def test_a_gate_that_is_closed_holds_a_gated_run_and_gives_it_its_time_again() -> None:
    world = World()
    gated, free = world.add("gated", gated=True), world.add("free")
    world.gate.hold("person", "maintenance")
    world.passes(2 * AFTER)
    assert await world.silence.look()
    assert (gated.activity, free.activity) == ("live", "silent")
    world.gate.release("person")
    world.passes(AFTER)
    assert not await world.silence.look()
    world.passes(0.5)
    assert await world.silence.look()
    assert gated.activity == "silent"


async def test_a_gate_is_held_by_each_holder_for_its_first_reason() -> None:
    gate = Gate(FakeBridge())
    assert (gate.closed, gate.reason) == (False, None)
    assert (gate.answer().gate, gate.answer().confirmed) == ("open", False)
    gate.hold("person", "maintenance")
    gate.hold("run:math", "drift")
    gate.hold("person", "lunch")
    assert (gate.closed, gate.reason) == (True, "maintenance; drift")
    answer = gate.answer()
    assert [(hold.holder, hold.reason) for hold in answer.holds] == [("person", "maintenance"), ("run:math", "drift")]
    assert 1_700_000_000 < answer.holds[0].since < 4_000_000_000
    gate.release("person")
    gate.release("nobody")
    assert (gate.answer().gate, gate.reason) == ("closed", "drift")


async def test_a_gate_is_confirmed_once_the_cluster_has_followed_and_until_it_is_to_move_again() -> None:
    bridge = FakeBridge()
    gate = Gate(bridge)
    await gate.settle()
    assert (gate.answer().confirmed, bridge.calls) == (True, ["resume"])
    gate.hold("person", "maintenance")
    assert not gate.answer().confirmed
    await gate.settle()
    assert (gate.answer().confirmed, bridge.open_gate, bridge.calls) == (True, False, ["resume", "pause"])
    gate.release("person")
    assert not gate.answer().confirmed
    await gate.settle()
    assert (gate.answer().confirmed, bridge.open_gate) == (True, True)


class Moving(FakeBridge):
    """While its engines follow, somebody changes their mind."""

    def __init__(self, then: Any) -> None:
        super().__init__()
        self.then = then

    async def pause(self, reason: str) -> None:
        await super().pause(reason)
        self.then()

    async def resume(self) -> None:
        await super().resume()
        self.then()


async def test_a_gate_that_is_to_be_elsewhere_by_now_is_not_confirmed() -> None:
    bridge = Moving(lambda: None)
    gate = Gate(bridge)
    bridge.then = lambda: gate.hold("person", "maintenance")
    await gate.settle()
    assert (gate.answer().gate, gate.answer().confirmed) == ("closed", False)
    bridge.then = lambda: gate.release("person")
    await gate.settle()
    assert (gate.answer().gate, gate.answer().confirmed) == ("open", False)


@pytest.mark.parametrize(
    ("held", "actual", "calls", "confirmed"),
    [
        (False, "open", [], True),
        (True, "closed", [], True),
        (False, "unknown", [], False),
        (True, "unknown", [], False),
        (True, "open", ["pause"], True),
        (False, "closed", ["resume"], True),
    ],
)
async def test_a_gate_that_is_not_where_it_is_to_be_is_moved(
    held: bool, actual: str, calls: list[str], confirmed: bool
) -> None:
    bridge = FakeBridge()
    gate = Gate(bridge)
    if held:
        gate.hold("person", "maintenance")
    await gate.observe(actual)
    assert (bridge.calls, gate.answer().confirmed) == (calls, confirmed)


async def test_a_gate_that_cannot_be_moved_now_is_moved_at_another_look(caplog: pytest.LogCaptureFixture) -> None:
    bridge = FakeBridge(gate_error=RayUnavailableError("the head is gone"))
    gate = Gate(bridge)
    gate.hold("person", "maintenance")
    await gate.observe("open")
    assert not gate.answer().confirmed
    assert "the gate is open and should not be: the head is gone" in caplog.text
    bridge.gate_error = None
    await gate.observe("open")
    assert gate.answer().confirmed
