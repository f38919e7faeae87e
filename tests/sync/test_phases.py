"""Figures that a sync's result has: how long its phases took, what a plain copy costs, what the journal gives back."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from omni_rl.sync import roofline, states
from omni_rl.sync.result import SyncResult
from omni_rl.sync.roofline import copy_rate
from omni_rl.sync.states import Machine, Phase, SyncEvent


@pytest.fixture
def _measured_anew() -> Iterator[None]:
    copy_rate.cache_clear()
    yield
    copy_rate.cache_clear()


def test_a_phase_takes_until_the_next_and_two_of_a_kind_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 10.0, 11.0, 13.0, 17.0, 25.0, 41.0, 73.0])
    monkeypatch.setattr(states, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    events: list[SyncEvent] = []
    machine = Machine("s", events.append)
    for phase in (Phase.PREPARE, Phase.PAUSE, Phase.APPLY, Phase.VERIFY):
        machine.enter(phase)
    machine.decide("abort")
    for phase in (Phase.ROLLBACK, Phase.VERIFY, Phase.RESUME):
        machine.enter(phase)
    # Between its beginning and its first phase a sync is idle, which is no phase; the last one is not over.
    assert machine.seconds == {"prepare": 1.0, "pause": 2.0, "apply": 4.0, "verify": 8.0 + 32.0, "rollback": 16.0}
    assert events[0] == SyncEvent("s", Phase.PREPARE, "entered", None, "")
    assert (machine.phase, machine.course) == (Phase.RESUME, "back")


def test_a_machine_begins_with_nothing_decided_and_nothing_timed() -> None:
    machine = Machine("s", lambda event: None)
    assert (machine.sync, machine.phase, machine.course, machine.seconds) == ("s", Phase.IDLE, "open", {})


@pytest.mark.usefixtures("_measured_anew")
def test_a_plain_copy_is_measured_once_and_the_best_of_some_tries_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    took = iter([0.0, 4.0, 10.0, 12.0, 20.0, 23.0])
    monkeypatch.setattr(roofline, "time", SimpleNamespace(perf_counter=lambda: next(took)))
    monkeypatch.setattr(roofline, "BYTES", 100)
    monkeypatch.setattr(roofline, "TRIES", 3)
    assert copy_rate() == 50.0
    assert copy_rate() == 50.0
    assert list(took) == []


@pytest.mark.usefixtures("_measured_anew")
def test_a_plain_copy_is_of_more_than_a_processors_cache_and_takes_no_second(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1e8 < copy_rate() < 1e12


def test_a_result_comes_back_from_what_the_journal_keeps() -> None:
    result = SyncResult(
        *("s", "rolled_back", "run/1/2/b", "run/1/1/a", 3, 40, 9, 10),
        seconds={"prepare": 1.5},
        stall=0.25,
        agreement={"text": {"tokens": 1.0}},
        reason="why",
        mismatches=("w: 1 element differs",),
        replaced={"r0": "gone"},
        out={"r1": "no room"},
        copy_rate=1e9,
        origin="published",
        nonfinite=("w: 1 NaN of 3 elements",),
        allow_nonfinite=True,
    )
    kept = result.to_json()
    kept["mismatches"], kept["nonfinite"] = list(result.mismatches), list(result.nonfinite)  # as JSON has them
    assert SyncResult.from_json(kept) == result
    bare = SyncResult("s", "committed", "v", "v")
    assert SyncResult.from_json({"sync": "s", "outcome": "committed", "version": "v", "serving": "v"}) == bare
    assert (bare.tensors, bare.bytes, bare.stall, bare.copy_rate) == (0, 0, 0.0, 0.0)
    assert (bare.seconds, bare.replaced, bare.out, bare.agreement) == ({}, {}, {}, None)
    assert (bare.reason, bare.mismatches, bare.nonfinite, bare.allow_nonfinite) == ("", (), (), False)
