"""Turns in the engine's thread: what waits for the gate, what does not, and how everybody hears of an engine's end."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from omni_rl.errors import EngineDeadError, PromptError, QuarantinedError
from omni_rl.rollout.loop import EngineLoop


class CountingEngine:
    """Each request needs so many steps; writes down what happened, in order."""

    def __init__(self) -> None:
        self.left: dict[str, int] = {}
        self.events: list[str] = []
        self.dies = False

    @property
    def busy(self) -> bool:
        return bool(self.left)

    def submit(self, *steps: int) -> list[str]:
        if any(count < 1 for count in steps):
            raise PromptError("a request needs a step")
        names = [f"{len(self.left) + index}/{count}" for index, count in enumerate(steps)]
        self.left |= dict(zip(names, steps, strict=True))
        return names

    def step(self) -> dict[str, Any]:
        if self.dies:
            raise EngineDeadError("a step ended in a test")
        self.events.append("step")
        self.left = {name: count - 1 for name, count in self.left.items()}
        finished = {name: f"answer {name}" for name, count in self.left.items() if not count}
        self.left = {name: count for name, count in self.left.items() if count}
        return finished

    def close(self) -> None:
        self.events.append("close")


Loop = EngineLoop[CountingEngine]


@pytest.fixture
def loop() -> Iterator[Loop]:
    started = EngineLoop(CountingEngine, gate_open=True)
    yield started
    started.close()


def held(loop: Loop) -> threading.Event:
    """Keeps the engine's thread busy until it is set: what is asked for meanwhile is there for its next turn."""
    go = threading.Event()
    loop.command(lambda engine: go.wait(5))
    return go


def settled(future: "Future[Any]") -> Any:
    return future.result(5)


def test_answers_come_in_the_order_of_the_requests(loop: Loop) -> None:
    assert settled(loop.requests(lambda engine: engine.submit(3, 1, 2))) == ["answer 0/3", "answer 1/1", "answer 2/2"]
    assert settled(loop.requests(lambda engine: engine.submit())) == []


def test_batches_share_steps(loop: Loop) -> None:
    go = held(loop)
    batches = [loop.requests(lambda engine: engine.submit(4)), loop.requests(lambda engine: engine.submit(4))]
    go.set()
    for batch in batches:
        settled(batch)
    assert settled(loop.command(lambda engine: engine.events)) == ["step"] * 4


def test_a_refused_request_is_its_askers_alone(loop: Loop) -> None:
    go = held(loop)
    good, bad = loop.requests(lambda engine: engine.submit(2)), loop.requests(lambda engine: engine.submit(0))
    go.set()
    with pytest.raises(PromptError, match="needs a step"):
        settled(bad)
    assert settled(good)


def test_a_command_runs_before_what_was_asked_for_earlier(loop: Loop) -> None:
    go = held(loop)
    batch = loop.requests(lambda engine: engine.submit(1))
    command = loop.command(lambda engine: list(engine.events))
    go.set()
    assert settled(command) == []
    settled(batch)


def test_while_the_gate_is_closed_requests_wait_and_commands_run(loop: Loop) -> None:
    settled(loop.command(lambda engine: loop.close_gate()))
    batch = loop.requests(lambda engine: engine.submit(1))
    task = loop.task(lambda engine: iter(["scored"]), gated=True)
    assert settled(loop.task(lambda engine: iter(["rendered"]), gated=False)) == ["rendered"]
    assert settled(loop.command(lambda engine: engine.events)) == []
    time.sleep(0.05)
    assert not batch.done()
    assert not task.done()
    settled(loop.command(lambda engine: loop.open_gate()))
    assert settled(batch) == ["answer 0/1"]
    assert settled(task) == ["scored"]


def test_a_task_lets_commands_in_between_its_parts(loop: Loop) -> None:
    seen: list[str] = []
    first = threading.Event()
    commanded = threading.Event()

    def parts(engine: CountingEngine) -> Iterator[int]:
        for number in range(3):
            seen.append(f"part {number}")
            first.set()
            yield number
            commanded.wait(5)

    task = loop.task(parts, gated=False)
    assert first.wait(5)
    command = loop.command(lambda engine: seen.append("command"))
    commanded.set()
    settled(command)
    assert settled(task) == [0, 1, 2]
    assert seen.index("command") < seen.index("part 2")


def test_finishing_admits_nothing_new_and_can_be_called_off(loop: Loop) -> None:
    go = held(loop)
    batch = loop.requests(lambda engine: engine.submit(3))
    go.set()

    def drain(engine: CountingEngine, patience: int) -> bool:
        left = iter([True] * patience + [False])
        return loop.finish_under_way(engine, lambda: next(left))

    settled(loop.task(lambda engine: iter(["begun"]), gated=True))
    settled(loop.command(lambda engine: loop.close_gate()))
    late = loop.requests(lambda engine: engine.submit(1))
    under_way = settled(loop.command(lambda engine: sum(engine.left.values())))
    if under_way > 1:
        assert not settled(loop.command(lambda engine: drain(engine, 1)))
    assert settled(loop.command(lambda engine: drain(engine, 9)))
    assert settled(batch)
    assert not late.done()


def test_when_a_step_dies_everybody_hears_of_it(loop: Loop) -> None:
    go = held(loop)
    loop.command(lambda engine: setattr(engine, "dies", True))
    waiting = [
        loop.requests(lambda engine: engine.submit(3)),
        loop.task(lambda engine: iter(range(9**9)), gated=True),
    ]
    go.set()
    for future in waiting:
        with pytest.raises(EngineDeadError, match="ended in a test"):
            settled(future)
    with pytest.raises(EngineDeadError):
        settled(loop.requests(lambda engine: engine.submit(1)))
    assert settled(loop.command(lambda engine: "still obeys")) == "still obeys"


def test_an_engine_that_dies_while_what_is_under_way_is_finished_is_told_of(loop: Loop) -> None:
    def drain(engine: CountingEngine) -> bool:
        engine.dies = True
        return loop.finish_under_way(engine, lambda: True)

    settled(loop.command(lambda engine: loop.close_gate()))
    settled(loop.command(lambda engine: engine.submit(2)))
    with pytest.raises(EngineDeadError, match="ended in a test"):
        settled(loop.command(drain))


def test_what_is_refused_is_refused_for_good(loop: Loop) -> None:
    settled(loop.command(lambda engine: loop.refuse(QuarantinedError("shut"))))
    settled(loop.command(lambda engine: loop.open_gate()))
    with pytest.raises(QuarantinedError, match="shut"):
        settled(loop.requests(lambda engine: engine.submit(1)))


def test_an_engine_that_cannot_be_built_is_reported() -> None:
    def build() -> CountingEngine:
        raise PromptError("no checkpoint")

    loop = EngineLoop(build, gate_open=True)
    with pytest.raises(PromptError, match="no checkpoint"):
        loop.ready.result(5)
    futures: list[Future[Any]] = [loop.command(lambda engine: "obeyed"), loop.requests(lambda engine: ["asked"])]
    for future in futures:
        with pytest.raises(EngineDeadError):
            future.result(5)


def test_closing_fails_what_waits_and_closes_the_engine() -> None:
    loop = EngineLoop(CountingEngine, gate_open=False)
    engine = loop.ready.result(5)
    batch = loop.requests(lambda engine: engine.submit(1))
    between: list[Future[str]] = []
    # Called in the engine's thread, which has taken its last turn by then.
    batch.add_done_callback(lambda _: between.append(loop.command(lambda engine: "never obeyed")))
    loop.close()
    futures: list[Future[Any]] = [batch, *between, loop.command(lambda engine: "too late")]
    for future in futures:
        with pytest.raises(EngineDeadError, match="closed"):
            future.result(5)
    assert len(between) == 1
    assert engine.events == ["close"]
