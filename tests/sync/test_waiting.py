"""What is said to somebody who waits for an actor: its answer, its error, or what is known of its process."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError, RaySystemError, RayTaskError

from omni_rl.errors import ReplicaDeadError, ReplicaSilentError, ReplicaStoppedError, SlabError
from omni_rl.processes import STOPPED_AFTER
from omni_rl.sync import presence, waiting
from omni_rl.sync.presence import PING_EVERY, Presence
from omni_rl.sync.replica import Deadline
from omni_rl.sync.waiting import Waiter

LIMIT = Deadline("answer", 1.25)


class Actor:
    """An actor, Ray's way to it, and the clock of whoever waits. `answer` is what it answers after `seconds`, None for
    nothing, and `pong` what it answers to pings; errors are raised. `stopped`: for so many seconds, as the kernel says.
    `tick`: what a look at the clock takes.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.answer: Any = None
        self.pong: Any = "here"
        self.seconds = 0.0
        self.tick = 0.0
        self.stopped: float | None = None
        self.life = "runs"
        self.slices: list[float] = []
        self.pings = 0
        self.alive = SimpleNamespace(remote=self.ping)
        for module in (presence, waiting):
            monkeypatch.setattr(module, "ray", self)
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=self.monotonic))
        monkeypatch.setattr(presence, "StopClock", lambda pid: SimpleNamespace(seconds=lambda: self.stopped))
        monkeypatch.setattr(presence, "life", lambda pid: self.life)

    def monotonic(self) -> float:
        self.now += self.tick
        return self.now

    def ping(self) -> str:
        self.pings += 1
        return "ping"

    def wait(self, references: Sequence[str], timeout: float) -> tuple[Sequence[str], Sequence[str]]:
        if references == ["ping"]:
            return ([], references) if self.pong is None else (references, [])
        self.slices.append(timeout)
        assert len(self.slices) < 100, "it waits on"
        self.now += timeout
        answered = self.answer is not None and self.now - 100.0 >= self.seconds
        return (references, []) if answered else ([], references)

    def get(self, reference: str, timeout: float | None = None) -> Any:
        if timeout is not None and self.pong is None:
            self.now += timeout
            raise GetTimeoutError("no answer")
        found = self.pong if reference == "ping" else self.answer
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture
def actor(monkeypatch: pytest.MonkeyPatch) -> Actor:
    return Actor(monkeypatch)


def test_an_answer_is_returned_as_it_comes(actor: Actor) -> None:
    actor.answer, actor.seconds = "done", 1.0
    assert Waiter(actor, "rollout-0", None).get("answer", "apply", LIMIT) == "done"
    assert actor.slices == [0.5, 0.5]
    assert actor.pings == 0
    assert Waiter(actor, "rollout-0", 7).get("answer", "apply", None) == "done"
    assert actor.pings == 0


@pytest.mark.parametrize(
    ("answer", "kind", "told"),
    [
        (RayTaskError("apply", "a traceback", SlabError("it is not sealed")), SlabError, "it is not sealed"),
        (ActorDiedError(), ReplicaDeadError, "rollout-0: its process ended during apply; replace it"),
        (
            RaySystemError("the node is gone"),
            ReplicaDeadError,
            "rollout-0: Ray lost the answer to apply: System error: the node is gone; replace it",
        ),
    ],
)
def test_an_error_says_whose_it_is(actor: Actor, answer: Exception, kind: type[Exception], told: str) -> None:
    actor.answer = answer
    with pytest.raises(kind) as error:
        Waiter(actor, "rollout-0", None).get("answer", "apply", LIMIT)
    assert (type(error.value), str(error.value).partition("\n")[0]) == (kind, told)


@pytest.mark.parametrize("deadline", [None, Deadline("write", 60.0)])
def test_a_stopped_process_of_this_machine_is_told_with_its_id(actor: Actor, deadline: Deadline | None) -> None:
    actor.stopped = STOPPED_AFTER
    with pytest.raises(ReplicaStoppedError) as error:
        Waiter(actor, "rollout-0", 7).get("answer", "apply", deadline)
    assert str(error.value) == (
        "rollout-0: process 7 is stopped (SIGSTOP or frozen), not dead, and did not answer apply; wake it up (kill "
        "-CONT 7), or end it: the next sync replaces it, dead or stopped"
    )
    assert actor.slices == [0.5]


def test_one_that_was_stopped_for_a_moment_is_waited_for(actor: Actor) -> None:
    actor.stopped = STOPPED_AFTER - 0.01
    actor.answer, actor.seconds = "done", 5.0
    assert Waiter(actor, "rollout-0", 7).get("answer", "apply", None) == "done"


def test_one_that_is_stopped_when_its_deadline_passes_is_not_silent(actor: Actor) -> None:
    actor.stopped = 0.0
    with pytest.raises(ReplicaStoppedError, match=r"trainer: process 7 is stopped .* or end it: it begins anew$"):
        Waiter(actor, "trainer", 7, ending="it begins anew").get("answer", "step", LIMIT)
    assert actor.slices == [0.5, 0.5, 0.25]


def test_one_of_another_machine_that_answers_nothing_is_told_after_so_many_seconds(actor: Actor) -> None:
    actor.pong = None
    with pytest.raises(ReplicaStoppedError) as error:
        Waiter(actor, "rollout-0", None, silent_after=3.0).get("answer", "load", None)
    assert str(error.value) == (
        "rollout-0: has answered no ping for 3 s, while Ray does not report it dead: it is stopped, or cut off, and "
        "did not answer load; wake it up, or end it: the next sync replaces it, dead or stopped"
    )
    assert actor.pings == 1


@pytest.mark.parametrize(
    ("pong", "kind", "told"),
    [
        ("here", ReplicaSilentError, "; it runs and answers pings"),
        (None, ReplicaStoppedError, ", nor to a ping within 5 s, while Ray does not report it dead: it is stopped, or"),
        (ActorDiedError(), ReplicaDeadError, "rollout-0: its process ended during apply; replace it"),
    ],
)
@pytest.mark.parametrize("pid", [None, 7])
def test_after_a_deadline_a_ping_tells_who_is_slow_stopped_or_gone(
    actor: Actor, pid: int | None, pong: Any, kind: type[Exception], told: str
) -> None:
    actor.pong = pong
    with pytest.raises(kind) as error:
        Waiter(actor, "rollout-0", pid).get("answer", "apply", LIMIT)
    if not isinstance(pong, Exception):
        told = f"rollout-0: no answer to apply within its deadline 'answer' of 1.25 s{told}"
    assert str(error.value).startswith(told)
    assert actor.pings == 1
    assert actor.now == 101.25 + (5.0 if pong is None else 0.0)


@pytest.mark.parametrize("tick", [0.0, 0.125])
def test_a_deadline_of_nothing_is_one_look(actor: Actor, tick: float) -> None:
    actor.tick = tick
    with pytest.raises(ReplicaSilentError):
        Waiter(actor, "rollout-0", None).get("answer", "apply", Deadline("answer", 0.0))
    assert actor.slices == [0.0]


def test_answers_to_pings_are_heard_of_a_process_of_this_machine_too(actor: Actor) -> None:
    heard: list[Any] = []
    actor.answer, actor.seconds = "done", 4.0
    waiter = Waiter(actor, "rollout-0", 7, ping=lambda: actor.ping(), heard=heard.append)
    assert waiter.get("answer", "load", None) == "done"
    assert actor.pings >= 3
    assert heard == ["here"] * (actor.pings - 1)
    waiter.get("answer", "load", LIMIT)


def broken(told: Any) -> None:
    raise ValueError(f"not {told}")


NOT_HERE = RayTaskError("alive", "a traceback", ValueError("not here")).as_instanceof_cause()


@pytest.mark.parametrize(
    ("pong", "heard"),
    [("here", broken), (NOT_HERE, lambda told: None)],
    ids=["the listener", "the method that answers"],
)
def test_what_goes_wrong_with_a_ping_ends_the_wait(actor: Actor, pong: Any, heard: Callable[[Any], None]) -> None:
    actor.pong = pong
    with pytest.raises(ValueError, match=r"not here|a traceback"):
        Waiter(actor, "rollout-0", None, heard=heard).get("answer", "load", None)


def test_a_process_is_pinged_at_the_first_look_and_then_once_a_second(actor: Actor) -> None:
    actor.now = 0.0  # a machine that has just started
    process = Presence(None, actor.ping)
    for seconds, pings in ((0.0, 1), (0.25, 1), (PING_EVERY - 0.25, 2), (0.5, 2), (0.25, 2), (0.25, 3)):
        actor.now += seconds
        assert process.look() == ""
        assert actor.pings == pings


def test_without_a_ping_nothing_is_asked_and_nothing_said(actor: Actor) -> None:
    actor.pong = None
    process = Presence(None, actor.ping, silent_after=2.0)
    process.look()
    actor.now += 10.0
    assert process.look(ping=False) == ""
    assert "for 10 s" in process.look()
    assert actor.pings == 1
    process = Presence(7, actor.ping)
    assert process.look() == process.look(ping=False) == ""
    assert actor.pings == 1


def test_a_ping_that_could_not_be_sent_is_sent_again_and_no_silence(actor: Actor) -> None:
    def ping() -> str:
        actor.pings += 1
        raise RaySystemError("not connected")

    process = Presence(None, ping, silent_after=2.0)
    for _ in range(5):
        assert process.look() == ""
        actor.now += PING_EVERY
    assert actor.pings == 5


def test_a_process_of_this_machine_is_gone_when_the_kernel_says_so(actor: Actor) -> None:
    process, elsewhere = Presence(7, actor.ping), Presence(None, actor.ping)
    found = []
    for actor.life in ("runs", "gone", "stopped"):
        found.append((process.gone, elsewhere.gone))
    assert found == [(False, False), (True, False), (False, False)]
    actor.stopped = 1.5
    assert (process.seen_stopped, elsewhere.seen_stopped) == (1.5, None)
