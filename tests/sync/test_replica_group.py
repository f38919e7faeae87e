"""Commands that go to all replicas at once: who gets which, what is told of the answers, and what one alone stops."""

from collections.abc import Callable, Iterator

import pytest

from omni_rl.errors import ConfigError, FencedError, ReplicaDeadError
from omni_rl.sync.replica import Command, Deadline, Fence, Pause
from omni_rl.sync.replica_group import Deadlines, ReplicaGroup
from omni_rl.sync.states import Phase, SyncEvent

from .by_hand import ReplicaByHand

LIMIT = Deadline("limit", 7.0)


class Both:
    """A group of two, and the events that it told."""

    def __init__(self) -> None:
        self.one, self.other = ReplicaByHand("b", epoch=3), ReplicaByHand("a", epoch=3)
        self.events: list[SyncEvent] = []
        self.group = ReplicaGroup([self.one, self.other], Deadlines(answer=2.0), self.events.append)


@pytest.fixture
def both() -> Iterator[Both]:
    made = Both()
    yield made
    made.group.close()


def test_each_gets_its_own_command_and_what_it_answers_is_told(both: Both) -> None:
    commands: dict[str, Command] = {"a": Fence(4, "s"), "b": Pause(4, "s")}
    answers = both.group.tell(Phase.PAUSE, commands, LIMIT)
    assert (both.one.heard, both.other.heard) == ([commands["b"]], [commands["a"]])
    assert both.one.given == both.other.given == {"limit": 7.0}
    assert {name: status.standing for name, status in answers.done.items()} == {"a": "closed", "b": "paused"}
    assert answers.failed == {}
    done = [SyncEvent("s", Phase.PAUSE, "done", name, "") for name in ("a", "b")]
    assert sorted(both.events, key=lambda event: event.replica or "") == done
    assert both.group.names == ["b", "a"]


def test_what_one_fails_with_is_its_own(both: Both) -> None:
    error = ReplicaDeadError("gone")
    both.one.fails[Fence] = [error]
    answers = both.group.tell(Phase.APPLY, dict.fromkeys("ab", Fence(4, "s")), LIMIT)
    assert (set(answers.done), answers.failed) == ({"a"}, {"b": error})
    assert SyncEvent("s", Phase.APPLY, "failed", "b", "gone") in both.events
    assert SyncEvent("s", Phase.APPLY, "done", "a", "") in both.events


@pytest.mark.parametrize("ask", ["tell", "order"])
def test_one_that_heard_a_newer_coordinator_ends_it_for_all_once_all_have_answered(both: Both, ask: str) -> None:
    both.one.epoch = 9
    commands: dict[str, Command] = dict.fromkeys("ab", Fence(4, "s"))
    asked: dict[str, Callable[[], object]] = {
        "tell": lambda: both.group.tell(Phase.PAUSE, commands, LIMIT),
        "order": lambda: both.group.order(commands, LIMIT),
    }
    with pytest.raises(FencedError, match="b has heard epoch 9"):
        asked[ask]()
    assert both.other.epoch == 4
    told = {(event.replica, event.what) for event in both.events}
    assert told == ({("a", "done"), ("b", "failed")} if ask == "tell" else set())


def test_orders_and_questions_are_told_to_nobody(both: Both) -> None:
    both.other.fails[Fence] = [ReplicaDeadError("gone")]
    answers = both.group.order(dict.fromkeys("ab", Fence(5, "hold")), LIMIT)
    assert (set(answers.done), set(answers.failed)) == ({"b"}, {"a"})
    both.one.fails[Command] = [ReplicaDeadError("gone")]
    assert set(both.group.statuses()) == {"a"}
    assert set(both.group.statuses()) == {"a", "b"}
    assert both.events == []


def test_only_those_named_are_replaced(both: Both) -> None:
    both.one.successor = ReplicaDeadError("no room")
    answers = both.group.replace("s", ["b"])
    assert (both.one.ends, both.other.ends) == (1, 0)
    assert {name: str(error) for name, error in answers.failed.items()} == {"b": "no room"}
    assert both.events == [SyncEvent("s", Phase.QUARANTINE, "failed", "b", "no room")]
    assert both.group.tell(Phase.PAUSE, {}, LIMIT).done == {}


def test_a_group_has_replicas_and_each_a_name_of_its_own() -> None:
    for replicas in ([], [ReplicaByHand("a"), ReplicaByHand("a")]):
        with pytest.raises(ConfigError, match="give one or more, each its own name"):
            ReplicaGroup(replicas, Deadlines(), lambda event: None)
