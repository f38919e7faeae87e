"""Who is asked for what: shares are balanced, and what a dead replica had is asked of others, once."""

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import pytest

from omni_rl.errors import EngineDeadError, PromptError, QuarantinedError
from omni_rl.policies.dealing import ASKED, Deal, shares

PATIENCE = 60.0
"""Seconds until a test gives up on what it waits for."""


@dataclass(eq=False)
class Replica:
    """Answers each place with its own name, after `before` was called with the places."""

    name: str
    before: Callable[[list[int]], object] = lambda share: None
    usable: bool = True
    asked: list[list[int]] = field(default_factory=list)

    def ask(self, share: list[int]) -> list[tuple[int, str]]:
        self.asked.append(share)
        if not self.usable:
            raise EngineDeadError(f"{self.name}: the engine cannot be used")
        self.before(share)
        return [(place, self.name) for place in share]

    def die(self, share: list[int]) -> None:
        self.usable = False
        raise EngineDeadError(f"{self.name}: its process ended")


def deal(
    replicas: list[Replica], count: int, revive: Callable[[], object] = lambda: pytest.fail("nobody was to be revived")
) -> list[tuple[int, str]]:
    return Deal(lambda: replicas, revive, Replica.ask, range(count)).run()


def names(answers: Sequence[tuple[int, str]]) -> list[str]:
    """Whose answers they are, which stand in the order of their places."""
    assert [place for place, _ in answers] == list(range(len(answers)))
    return [name for _, name in answers]


@pytest.mark.parametrize("replicas", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 64])
@pytest.mark.parametrize("copies", [1, 3, 8, 100])
def test_every_place_is_dealt_once_and_shares_are_balanced(replicas: int, count: int, copies: int) -> None:
    dealt = shares(range(count), replicas, [place // copies for place in range(count)])
    assert sorted(place for share in dealt for place in share) == list(range(count))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    assert all(share == sorted(share) for share in dealt)


@pytest.mark.parametrize(("groups", "copies", "replicas", "split"), [(8, 8, 2, 0), (3, 8, 2, 1), (1, 64, 2, 1)])
def test_copies_of_a_prompt_stay_together(groups: int, copies: int, replicas: int, split: int) -> None:
    alike: list[Hashable] = [place // copies for place in range(groups * copies)]
    dealt = shares(range(len(alike)), replicas, alike)
    assert sum(len({alike[place] for place in share}) for share in dealt) == groups + split


def test_neighbours_go_to_the_replicas_in_turn() -> None:
    """Prompts of one kind stand side by side, and cost the same."""
    assert shares(range(6), 2, range(6)) == [[0, 2, 4], [1, 3, 5]]


def test_answers_stand_in_the_order_of_their_places_and_a_slow_replica_keeps_its_share() -> None:
    others_are_done = threading.Event()
    slow = Replica("slow", lambda share: others_are_done.wait(PATIENCE))
    fast = Replica("fast", lambda share: others_are_done.set())
    assert names(deal([slow, fast], 5)) == ["slow", "fast", "slow", "fast", "slow"]
    assert slow.asked == [[0, 2, 4]]
    assert fast.asked == [[1, 3]]


def test_a_dead_replicas_share_goes_to_those_that_live_while_they_work() -> None:
    dying, first, second = Replica("dying"), Replica("first"), Replica("second")
    dying.before = dying.die
    both_took_over, taken_over = threading.Barrier(2), threading.Event()

    def before(replica: Replica) -> Callable[[list[int]], object]:
        def work(share: list[int]) -> None:
            if len(replica.asked) > 1:
                both_took_over.wait(PATIENCE)
                taken_over.set()
            assert taken_over.wait(PATIENCE), "the dead one's share waited for the others"

        return work

    first.before, second.before = before(first), before(second)
    assert set(names(deal([dying, first, second], 12))) == {"first", "second"}
    assert [list(map(len, replica.asked)) for replica in (dying, first, second)] == [[4], [4, 2], [4, 2]]


def test_who_is_known_to_be_dead_is_not_asked() -> None:
    dead, living = Replica("dead", usable=False), Replica("living")
    assert names(deal([dead, living], 3)) == ["living"] * 3
    assert dead.asked == []


def test_where_none_lives_successors_are_asked_for_what_is_left() -> None:
    first, second = Replica("first"), Replica("second")
    replicas = [first, second]
    first_answered = threading.Event()

    def die_later(share: list[int]) -> None:
        assert first_answered.wait(PATIENCE)
        second.die(share)

    def answer_once(share: list[int]) -> None:
        if len(first.asked) > 1:
            first.die(share)
        first_answered.set()

    first.before, second.before = answer_once, die_later
    successor = Replica("successor")

    def revive() -> None:
        replicas[:] = [successor]

    assert names(deal(replicas, 4, revive)) == ["first", "successor", "first", "successor"]
    assert successor.asked == [[1, 3]]


@pytest.mark.parametrize("count", [1, 4, 9])
def test_a_request_that_kills_whoever_gets_it_is_given_up(count: int) -> None:
    replicas = [Replica(str(number)) for number in range(count)]

    def poisoned(replica: Replica) -> Callable[[list[int]], object]:
        return lambda share: replica.die(share) if 5 in share else None

    for replica in replicas:
        replica.before = poisoned(replica)

    def revive() -> None:
        for replica in replicas:
            replica.usable = True

    with pytest.raises(EngineDeadError, match="its process ended"):
        deal(replicas, 10, revive)
    assert sum(5 in share for replica in replicas for share in replica.asked) == ASKED == 3


def test_a_quarantined_replica_loses_its_share_and_is_not_asked_again_for_this_batch() -> None:
    def refuse(share: list[int]) -> None:
        raise QuarantinedError("replica out is quarantined: replace it")

    dying = Replica("dying")
    dying.before = dying.die
    out, living = Replica("out", refuse), Replica("living")
    assert names(deal([out, dying, living], 6)) == ["living"] * 6
    assert len(out.asked) == 1


def test_what_a_replica_refuses_is_raised_after_the_others_are_done() -> None:
    refused = threading.Event()

    def refuse(share: list[int]) -> None:
        refused.set()
        raise PromptError("prompt 'a' is empty")

    ended: list[str] = []

    def work(share: list[int]) -> None:
        assert refused.wait(PATIENCE)
        ended.append("other")

    with pytest.raises(PromptError, match="'a' is empty"):
        deal([Replica("refusing", refuse), Replica("other", work)], 2)
    assert ended == ["other"]
