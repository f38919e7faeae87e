"""Replicas that must generate nothing for a while: who is told, and what a hold meets on its way."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from omni_rl.errors import (
    FencedError,
    ReplicaDeadError,
    SyncRolledBackError,
    WeightUpdateError,
)
from omni_rl.sync.replica import (
    Apply,
    Command,
    Deadline,
    Fence,
    HoldGate,
    Release,
)
from omni_rl.sync.states import Phase, SyncEvent

from .by_hand import NEW, OLD, RunByHand


def test_a_hold_and_its_end_reach_every_replica(run: RunByHand) -> None:
    run.sync.hold("the disk is full")
    run.sync.release()
    for replica in (run.one, run.other):
        assert replica.heard == [HoldGate(1, "hold", "the disk is full"), Release(1, "release")]
        assert replica.given == {"answer": 1.0}
    assert run.events == []


def test_a_hold_may_come_before_the_run_is_opened() -> None:
    run = RunByHand(opened=False)
    run.sync.hold("wait for the others")
    assert [type(command) for command in run.one.heard + run.other.heard] == [HoldGate] * 2
    run.sync.close()


def test_a_hold_that_was_not_confirmed_names_who_did_not(run: RunByHand) -> None:
    run.one.fails[HoldGate] = [ReplicaDeadError("gone")]
    run.other.fails[HoldGate] = [ReplicaDeadError("gone too")]
    with pytest.raises(WeightUpdateError, match=r"^r0: gone; r1: gone too$"):
        run.sync.hold("the disk is full")
    run.sync.hold("the disk is full")


def test_a_hold_of_a_coordinator_that_was_replaced_is_refused(run: RunByHand) -> None:
    run.one.epoch = 2
    with pytest.raises(FencedError, match="r0 has heard epoch 2"):
        run.sync.hold("the disk is full")
    run.one.epoch = 1
    run.sync.repair()
    run.sync.hold("the disk is full")
    assert run.one.heard[-1] == HoldGate(2, "hold", "the disk is full")


def test_a_hold_that_meets_a_rollback_is_given_again(run: RunByHand, monkeypatch: pytest.MonkeyPatch) -> None:
    """It arrives when the rollback, which has an epoch of its own, has been heard."""
    heard, call = threading.Event(), run.one.call

    def late(command: Command, deadline: Deadline) -> Any:
        if isinstance(command, HoldGate):
            assert heard.wait(10)
        answer = call(command, deadline)
        if isinstance(command, Fence) and command.epoch == 3:
            heard.set()
        return answer

    monkeypatch.setattr(run.one, "call", late)
    run.one.fails[Apply] = [WeightUpdateError("it cannot read the slab")]
    with ThreadPoolExecutor(1) as threads:
        holds: list[Future[None]] = []

        def begin(event: SyncEvent) -> None:
            if (event.phase, event.what) == (Phase.APPLY, "entered"):
                holds.append(threads.submit(run.sync.hold, "the disk is full"))
                while not any(isinstance(command, HoldGate) for command in run.other.heard):
                    pass

        run.watch = begin
        with pytest.raises(SyncRolledBackError):
            run.sync.sync(NEW)
        holds[0].result(10)
    assert [command.epoch for command in run.one.heard if isinstance(command, HoldGate)] == [2, 3]
    assert run.serves(OLD)
