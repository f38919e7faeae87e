"""How long a driver's call waits for a trainer whose process is stopped; Ray and the clock are a fake."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from omni_rl.errors import TrainerStoppedError
from omni_rl.processes import SILENT_AFTER
from omni_rl.sync import presence, waiting
from omni_rl.train import handle
from omni_rl.train.actor import TrainerStatus
from omni_rl.train.handle import TrainerHandle
from omni_rl.train.ranks import STOPPED_LONGEST

FOR_EVER = float("inf")
CALL = "the call"


class Machine:
    """Another machine with a trainer's process, Ray's way to it, and the clock. The process is stopped in the spans of
    time `stops`, and answers the one call at `answers`; a ping's reference is the time at which it was sent."""

    def __init__(self, stops: Sequence[tuple[float, float]], answers: float) -> None:
        self.now = 0.0
        self._stops = stops
        self._answers = answers
        self.each = SimpleNamespace(remote=lambda method, shares: CALL)
        self.status = SimpleNamespace(remote=lambda: self.now)

    def monotonic(self) -> float:
        return self.now

    def wait(self, references: Sequence[Any], timeout: float) -> tuple[Sequence[Any], Sequence[Any]]:
        self.now += timeout
        (reference,) = references
        ready = self.now >= self._answers if reference == CALL else self._ran(reference)
        return (references, []) if ready else ([], references)

    def get(self, reference: Any) -> Any:
        return ["saved"] if reference == CALL else TrainerStatus("run/1/0/abc")

    def _ran(self, since: float) -> bool:
        return not any(begin <= since and self.now < end for begin, end in self._stops)


def trainer(patch: pytest.MonkeyPatch, machine: Machine) -> TrainerHandle:
    for module in (presence, waiting):
        patch.setattr(module, "ray", machine)
    for module in (presence, waiting, handle):
        patch.setattr(module, "time", machine)
    return TrainerHandle(machine, "trainer", None)


def test_two_short_stops_during_one_call_are_no_long_one(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine([(1.0, 40.0), (400.0, 440.0)], answers=500.0)
    assert trainer(monkeypatch, machine).each("save", ["there"]) == ["saved"]


@pytest.mark.parametrize("before", [[], [(1.0, 40.0)]])
def test_a_process_that_stays_stopped_is_given_up(
    monkeypatch: pytest.MonkeyPatch, before: list[tuple[float, float]]
) -> None:
    machine = Machine([*before, (400.0, FOR_EVER)], answers=FOR_EVER)
    with pytest.raises(TrainerStoppedError, match="has answered no ping"):
        trainer(monkeypatch, machine).each("save", ["there"])
    assert STOPPED_LONGEST < machine.now - 400.0 < STOPPED_LONGEST + 3 * SILENT_AFTER
