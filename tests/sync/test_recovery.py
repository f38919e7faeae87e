"""Replicas that are brought to what was decided: from every standing, and whatever a crash left in the journal."""

from collections.abc import Callable
from typing import Any

import pytest

from omni_rl.errors import (
    NonFiniteWeightsError,
    QuarantinedError,
    ReplicaDeadError,
    SyncRolledBackError,
    SyncRunningError,
    WeightUpdateError,
)
from omni_rl.sync.recovery import mismatch_text
from omni_rl.sync.replica import (
    Apply,
    Fence,
    Proof,
    Quarantine,
    Resume,
    Standing,
    Verify,
)
from omni_rl.sync.result import SyncResult
from omni_rl.sync.states import Phase, SyncEvent
from omni_rl.sync.weight_sync import WeightSync

from .by_hand import NEW, OLD, RunByHand

CRASHED = "its coordinator ended before anything was decided"


def phases(events: list[SyncEvent]) -> list[Phase]:
    return [event.phase for event in events if event.what == "entered"]


@pytest.mark.parametrize(
    ("standing", "holds", "told"),
    [
        ("serving", OLD, ["Fence"]),
        ("serving", NEW, ["Fence", "Pause", "Apply", "Verify", "Resume"]),
        ("closed", OLD, ["Fence", "Verify", "Resume"]),
        ("closed", NEW, ["Fence", "Apply", "Verify", "Resume"]),
        ("closed", None, ["Fence", "Apply", "Verify", "Resume"]),
        ("paused", OLD, ["Fence", "Verify", "Resume"]),
        ("paused", NEW, ["Fence", "Apply", "Verify", "Resume"]),
        ("unproven", None, ["Fence", "Apply", "Verify", "Resume"]),
        ("proven", OLD, ["Fence", "Resume"]),
        ("proven", NEW, ["Fence", "Apply", "Verify", "Resume"]),
        ("quarantined", OLD, ["Fence", "Quarantine", "Fence", "Apply", "Verify", "Resume"]),
    ],
)
def test_from_each_standing_only_what_is_missing_is_done(
    run: RunByHand, standing: Standing, holds: str | None, told: list[str]
) -> None:
    run.one.standing, run.one.holds = standing, holds
    result = run.sync.repair(name="mend")
    assert run.one.told() == told
    assert run.other.told() == ["Fence"]
    assert run.serves(OLD)
    assert (result.sync, result.outcome, result.serving, result.out) == ("mend", "committed", OLD, {})
    assert set(result.replaced) == ({"r0"} if standing == "quarantined" else set())


@pytest.mark.parametrize(
    ("command", "error", "why"),
    [
        (Fence, ReplicaDeadError("gone"), "gone"),
        (Apply, WeightUpdateError("the slab is gone"), "the slab is gone"),
        (Verify, WeightUpdateError("cannot read"), "cannot read"),
        (Resume, ReplicaDeadError("gone"), "gone"),
    ],
)
def test_one_that_fails_on_the_way_is_replaced(run: RunByHand, command: Any, error: Any, why: str) -> None:
    run.one.standing, run.one.holds = "unproven", None
    run.one.fails[command] = [error]
    result = run.sync.repair()
    assert result.replaced == {"r0": why}
    assert run.serves(OLD)
    heard = run.one.told()
    assert heard[heard.index(command.__name__) + 1 :] == ["Quarantine", "Fence", "Apply", "Verify", "Resume"]
    assert phases(run.events) == [Phase.RESUME, Phase.QUARANTINE, Phase.IDLE]


def test_one_that_does_not_hold_what_was_written_is_replaced_and_its_successor_too(run: RunByHand) -> None:
    run.one.standing, run.one.holds = "unproven", None
    run.one.proofs = [("w: differs",), ("v: differs",)]
    result = run.sync.repair()
    why = f"does not hold {OLD}: "
    assert result.out == {"r0": f"{why}w: differs; no successor: {why}v: differs"}
    assert result.replaced == {}
    assert [type(command) for command in run.one.heard].count(Quarantine) == 1
    assert next(c for c in run.one.heard if isinstance(c, Quarantine)).reason == f"{why}w: differs"
    assert (run.one.standing, run.other.standing) == ("unproven", "serving")


@pytest.mark.parametrize(
    ("count", "told"), [(1, "t0"), (5, "t0; t1; t2; t3; t4"), (6, "t0; t1; t2; t3; t4; and 1 more")]
)
def test_of_many_differences_five_are_named(count: int, told: str) -> None:
    proof = Proof(NEW, 9, 9, 9, 9, tuple(f"t{number}" for number in range(count)))
    assert mismatch_text(proof) == f"does not hold {NEW}: {told}"


def test_a_repair_changes_nothing_of_a_run_that_serves(run: RunByHand) -> None:
    result = run.sync.repair()
    assert result.sync.startswith("repair-")
    assert len(result.sync) == len("repair-") + 8
    assert (result.replaced, result.reason, list(result.seconds)) == ({}, "", ["resume"])
    assert phases(run.events) == [Phase.RESUME, Phase.IDLE]
    assert len(run.journal.syncs) == 1
    assert run.one.heard == [Fence(2, result.sync)]
    run.sync.repair()
    assert run.one.epoch == 3


def left_behind(run: RunByHand, decision: Any) -> WeightSync:
    """Another coordinator of a run whose last one ended in the middle of the sync `left`."""
    run.journal.begin("left", "key", 1, "slab-1", "recompute")
    run.journal.prepared("left", 1, NEW)
    if decision:
        run.journal.decide("left", 1, decision)
    run.one.standing, run.one.holds = "proven", NEW
    run.other.standing, run.other.holds = "paused", OLD
    run.forget()
    run.slabs.held = {"slab-0": OLD, "slab-1": NEW}
    return run.coordinator()


@pytest.mark.parametrize(
    ("decision", "outcome", "serving", "way"),
    [
        ("commit", "committed", NEW, [Phase.RESUME, Phase.IDLE]),
        ("abort", "rolled_back", OLD, [Phase.ROLLBACK, Phase.VERIFY, Phase.RESUME, Phase.IDLE]),
        (None, "rolled_back", OLD, [Phase.ROLLBACK, Phase.VERIFY, Phase.RESUME, Phase.IDLE]),
    ],
)
def test_what_a_coordinator_left_is_finished_as_it_was_decided(
    run: RunByHand, decision: Any, outcome: str, serving: str, way: list[Phase]
) -> None:
    sync = left_behind(run, decision)
    result = sync.open("run/1/5/never")
    assert run.serves(serving)
    assert sync.version == serving
    assert phases(run.events) == way
    assert {event.sync for event in run.events} == {"left"}
    record = run.journal.record("left")
    assert record is not None
    assert record.decision == ("commit" if decision == "commit" else "abort")
    assert record.result is not None
    assert SyncResult.from_json(record.result) == result
    assert (result.sync, result.outcome, result.version, result.serving) == ("left", outcome, NEW, serving)
    assert result.reason == ("" if outcome == "committed" else CRASHED)
    if outcome == "committed":
        assert sync.sync("run/1/6/c", key="key") == result
    else:
        with pytest.raises(SyncRolledBackError, match=CRASHED):
            sync.sync("run/1/6/c", key="key")
    assert sync.sync("run/1/6/c", key="another").serving == "run/1/6/c"
    sync.close()


def test_a_run_opens_on_its_first_weights_once(run: RunByHand) -> None:
    first = RunByHand(opened=False)
    result = first.sync.open(OLD)
    assert first.serves(OLD)
    assert result.sync.startswith("open-")
    assert len(result.sync) == len("open-") + 8
    record = first.journal.record(result.sync)
    assert record is not None
    assert (record.key, record.epoch, record.mode, record.decision, record.finished) == (
        *(None, 1, "recompute", "commit", 1.0),
    )
    assert (record.slab.path, record.slab.version) == ("slab-0", OLD)
    assert first.one.told() == ["Fence", "Apply", "Verify", "Resume"]
    again = first.coordinator()
    assert again.open("run/1/9/other").serving == OLD
    assert first.one.told() == ["Fence"]
    assert first.slabs.allowed == [False]
    again.close()
    first.sync.close()


def test_first_weights_that_never_came_are_given_up_by_name() -> None:
    run = RunByHand(opened=False)
    with pytest.raises(NonFiniteWeightsError):
        run.sync.open(NonFiniteWeightsError("NaN", ("w",)))
    (given_up,) = run.journal.syncs
    assert (run.one.heard, run.other.heard) == ([], [])
    run.sync.open(OLD)
    record = run.journal.record(given_up)
    assert record is not None
    assert record.result is not None
    result = SyncResult.from_json(record.result)
    assert (record.decision, result.sync, result.outcome, result.version, result.serving, result.reason) == (
        *("abort", given_up, "rolled_back", "", "", CRASHED),
    )
    assert run.serves(OLD)
    run.sync.close()


@pytest.mark.parametrize("initial", [OLD, NEW])
def test_weights_that_were_lost_are_filled_again_where_they_were(run: RunByHand, initial: str) -> None:
    run.slabs.held.clear()
    sync = run.coordinator()
    if initial == OLD:
        assert sync.open(initial).serving == OLD
        assert run.slabs.held["slab-0"] == OLD
        assert run.slabs.allowed[-2:] == [True, True], "they were allowed when they were committed"
    else:
        with pytest.raises(
            WeightUpdateError, match=f"{OLD} are lost: slab-0 does not hold .* the source given has {NEW}"
        ):
            sync.open(initial)
        assert "slab-0" not in run.slabs.held, "a source with other weights writes nothing there"
    sync.close()


def test_a_sync_knows_its_name_and_phase_while_it_runs(run: RunByHand) -> None:
    seen: list[tuple[str, Phase] | None] = []
    run.watch = lambda event: seen.append(run.sync.running)
    named = run.sync.sync(NEW)
    assert len(named.sync) == 12
    assert seen[0] == (named.sync, Phase.PREPARE)
    assert [one and one[1] for one in seen][-1] == Phase.IDLE
    assert {one and one[0] for one in seen} == {named.sync}
    assert run.sync.running is None


def test_during_a_sync_no_other_runs_and_a_repair_neither(run: RunByHand) -> None:
    found: list[str] = []

    def ask(event: SyncEvent) -> None:
        others: list[Callable[[], object]] = [
            lambda: run.sync.sync("run/1/2/c"),
            run.sync.repair,
            lambda: run.sync.open("run/1/2/c"),
        ]
        for other in others:
            with pytest.raises(SyncRunningError) as error:
                other()
            found.append(str(error.value))

    run.watch = ask
    run.sync.sync(NEW, name="s")
    assert set(found) == {"sync s is under way; wait for it, or for its result"}
    assert run.serves(NEW)


def test_without_a_replica_that_serves_all_reasons_are_told(run: RunByHand) -> None:
    for replica, why in ((run.one, "gone"), (run.other, "gone too")):
        replica.fails[Fence] = [ReplicaDeadError(why)]
        replica.successor = ReplicaDeadError("no room")
    told = f"no replica serves {OLD}: r0: gone; no successor: no room; r1: gone too; no successor: no room"
    with pytest.raises(QuarantinedError, match=f"^{told}$"):
        run.sync.repair()


def test_a_refusal_is_one_only_where_weights_were_not_allowed(run: RunByHand) -> None:
    with pytest.raises(NonFiniteWeightsError) as refused:
        run.sync.sync(NonFiniteWeightsError("NaN", ("w: 1 NaN of 2 elements",)), name="s")
    assert str(refused.value) == f"sync s to new weights was rolled back, replicas serve {OLD}: NaN"
    record = run.journal.record("s")
    assert record is not None
    assert record.result is not None
    assert SyncResult.from_json(record.result).nonfinite == ("w: 1 NaN of 2 elements",)
    run.one.fails[Apply] = [WeightUpdateError("no")]
    with pytest.raises(SyncRolledBackError) as failed:
        run.sync.sync(NEW, allow_nonfinite=True)
    assert not isinstance(failed.value, NonFiniteWeightsError)
    result = run.sync.sync(NEW, allow_nonfinite=True)
    assert (result.nonfinite, result.allow_nonfinite) == (("w: 1 NaN of 3 elements",), True)
    assert run.slabs.allowed[-2:] == [True, True]
