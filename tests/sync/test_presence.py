"""What is made of the pings of a process on another machine; Ray, which carries them, is a fake."""

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, RaySystemError

from omni_rl.errors import ReplicaSilentError
from omni_rl.sync import presence, waiting
from omni_rl.sync.presence import PING_EVERY, Presence
from omni_rl.sync.replica import Deadline
from omni_rl.sync.waiting import Waiter

SILENT_AFTER = 5.0


class Elsewhere:
    """A machine with one process, Ray's way to it, and the clock that is looked at. `answer` is what pings get: None
    leaves them without one, and an error is raised."""

    def __init__(self) -> None:
        self.now = 100.0
        self.answer: str | Exception | None = "here"
        self.pings = 0

    def ping(self) -> str:
        self.pings += 1
        return "a reference"

    def monotonic(self) -> float:
        return self.now

    def wait(self, references: Sequence[str], timeout: float) -> tuple[Sequence[str], Sequence[str]]:
        assert timeout == 0, "a look does not wait"
        return ([], references) if self.answer is None else (references, [])

    def get(self, reference: str) -> str | None:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    made = Elsewhere()
    monkeypatch.setattr(presence, "ray", made)
    monkeypatch.setattr(presence, "time", made)
    return made


def looked(process: Presence, elsewhere: Elsewhere, seconds: float) -> str:
    """What the last of the looks of so many seconds says."""
    said = ""
    for _ in range(int(seconds / PING_EVERY)):
        elsewhere.now += PING_EVERY
        said = process.look()
    return said


def test_a_process_that_answers_runs_and_is_asked_again(elsewhere: Elsewhere) -> None:
    process = Presence(None, elsewhere.ping, silent_after=SILENT_AFTER)
    assert (looked(process, elsewhere, 3 * SILENT_AFTER), process.gone) == ("", False)
    assert elsewhere.pings == 3 * SILENT_AFTER / PING_EVERY


def test_one_that_answers_no_more_is_stopped_until_it_answers(elsewhere: Elsewhere) -> None:
    process = Presence(None, elsewhere.ping, silent_after=SILENT_AFTER)
    looked(process, elsewhere, SILENT_AFTER)
    elsewhere.answer = None
    assert looked(process, elsewhere, SILENT_AFTER - PING_EVERY) == ""
    assert "has answered no ping for 5 s" in looked(process, elsewhere, PING_EVERY)
    assert not process.gone
    elsewhere.answer = "here"
    assert looked(process, elsewhere, PING_EVERY) == ""


def test_one_that_ray_reports_dead_is_gone_and_not_stopped(elsewhere: Elsewhere) -> None:
    process = Presence(None, elsewhere.ping, silent_after=SILENT_AFTER)
    elsewhere.answer = ActorDiedError()
    assert (looked(process, elsewhere, 2 * SILENT_AFTER), process.gone) == ("", True)


def test_an_answer_that_ray_lost_says_nothing_and_the_next_one_does(elsewhere: Elsewhere) -> None:
    heard: list[str] = []
    process = Presence(None, elsewhere.ping, heard.append, SILENT_AFTER)
    elsewhere.answer = RaySystemError("the answer is lost")
    assert (looked(process, elsewhere, 2 * SILENT_AFTER), process.gone, heard) == ("", False, [])
    elsewhere.answer = "here"
    assert (looked(process, elsewhere, PING_EVERY), heard) == ("", ["here"])


def test_an_answer_is_waited_for_until_its_deadline_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The actor answers pings, and whoever waits is woken a little late."""
    clock = SimpleNamespace(now=100.0)

    def wait(references: Sequence[str], timeout: float) -> tuple[Sequence[str], Sequence[str]]:
        clock.now += timeout + 0.01
        assert clock.now < 110.0, "it waits on"
        return [], references

    monkeypatch.setattr(waiting, "ray", SimpleNamespace(wait=wait, get=lambda reference, timeout: "here"))
    monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: clock.now))
    waiter = Waiter(SimpleNamespace(alive=SimpleNamespace(remote=lambda: "a ping")), "rollout-0", None)
    with pytest.raises(ReplicaSilentError, match="no answer to apply within its deadline 'answer' of 3 s; it runs"):
        waiter.get("a reference", "apply", Deadline("answer", 3.0))
    assert clock.now >= 103.0


def test_an_actor_of_another_machine_is_pinged_while_its_answer_has_no_deadline(
    elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(references: Sequence[str], timeout: float) -> tuple[Sequence[str], Sequence[str]]:
        elsewhere.now += timeout
        return (references, []) if elsewhere.now > 110.0 else ([], references)

    monkeypatch.setattr(waiting, "ray", SimpleNamespace(wait=wait, get=lambda reference: "the answer"))
    waiter = Waiter(SimpleNamespace(alive=SimpleNamespace(remote=elsewhere.ping)), "rollout-0", None)
    assert waiter.get("a reference", "load", None) == "the answer"
    assert elsewhere.pings > 0
