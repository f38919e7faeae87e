"""Which phase may follow which, against the table of the design, written out by hand."""

import pytest

from omni_rl.sync.states import ALLOWED, Machine, Phase, SyncEvent

FORWARD = (Phase.PREPARE, Phase.PAUSE, Phase.APPLY, Phase.VERIFY, Phase.COMMIT)
BACK = (Phase.ROLLBACK, Phase.VERIFY, Phase.RESUME)


def machine(*phases: Phase) -> tuple[Machine, list[Phase]]:
    entered: list[SyncEvent] = []
    started = Machine("sync", entered.append)
    for phase in phases:
        started.enter(phase)
    return started, [event.phase for event in entered]


def may(started: Machine, phase: Phase) -> bool:
    try:
        started.enter(phase)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("length", range(len(FORWARD)))
def test_before_the_decision_there_is_one_way(length: int) -> None:
    done = FORWARD[:length]
    allowed = {phase for phase in Phase if may(machine(*done)[0], phase)}
    assert allowed == {FORWARD[length]}


def test_no_gate_opens_before_a_decision() -> None:
    for length in range(len(FORWARD) + 1):
        assert not may(machine(*FORWARD[:length])[0], Phase.RESUME)


@pytest.mark.parametrize("length", range(1, len(FORWARD) + 1))
def test_after_an_abort_there_is_one_way_back(length: int) -> None:
    started, _ = machine(*FORWARD[:length])
    started.decide("abort")
    way = (Phase.IDLE,) if length == 1 else BACK  # in PREPARE no replica has been touched
    for phase in way:
        for wrong in set(Phase) - {phase}:
            assert not may(started, wrong), f"{started.phase} -> {wrong}"
        assert may(started, phase)
    if length > 1:
        assert not may(started, Phase.ROLLBACK)
        assert may(started, Phase.QUARANTINE)
        assert not may(started, Phase.RESUME), "a quarantined replica's gate stays shut"
        assert may(started, Phase.IDLE)


def test_after_a_commit_there_is_no_way_back() -> None:
    started, _ = machine(*FORWARD)
    started.decide("commit")
    assert not may(started, Phase.ROLLBACK)
    assert may(started, Phase.RESUME)
    assert not may(started, Phase.ROLLBACK)
    assert may(started, Phase.QUARANTINE)
    assert not may(started, Phase.RESUME)
    assert may(started, Phase.IDLE)


def test_a_decision_is_final_and_needs_proof() -> None:
    for length in range(1, len(FORWARD)):
        with pytest.raises(AssertionError, match="commit in"):
            machine(*FORWARD[:length])[0].decide("commit")
    started, _ = machine(*FORWARD)
    started.decide("abort")
    with pytest.raises(AssertionError, match="already decided"):
        started.decide("commit")


def test_phases_are_timed_and_told() -> None:
    started, entered = machine(*FORWARD)
    assert entered == list(FORWARD)
    assert set(started.seconds) == set(FORWARD[:-1])


def test_every_phase_has_a_way_to_idle() -> None:
    for course in ("forward", "back"):
        reached, frontier = {Phase.IDLE}, True
        while frontier:
            more = {phase for phase, following in ALLOWED[course].items() if following & reached} - reached
            reached, frontier = reached | more, bool(more)
        assert set(ALLOWED[course]) <= reached
