"""One sync, step by step: what replicas are told, what the journal has, and what becomes of every kind of failure."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from omni_rl.errors import (
    EngineDeadError,
    FencedError,
    JournalError,
    OmniRLError,
    QuarantinedError,
    ReplicaDeadError,
    ReplicaSilentError,
    ReplicaStoppedError,
    SlabError,
    SyncRolledBackError,
    SyncUndecidedError,
    WeightUpdateError,
)
from omni_rl.sync import transaction
from omni_rl.sync.replica import Apply, Command, Fence, Pause, Resume, ScoreProbe, SlabRef, Verify
from omni_rl.sync.replica_group import Deadlines
from omni_rl.sync.result import SyncResult
from omni_rl.sync.states import Phase

from .by_hand import NEW, OLD, RunByHand


def stored(run: RunByHand, sync: str = "s") -> SyncResult:
    """The result that the journal has of a sync."""
    record = run.journal.record(sync)
    assert record is not None
    assert record.result is not None
    return SyncResult.from_json(record.result)


@pytest.mark.parametrize(("mode", "drain"), [("recompute", 0.0), ("keep", 0.0), ("drain", 20.0)])
def test_every_replica_is_told_the_same_in_one_order(run: RunByHand, mode: Any, drain: float) -> None:
    result = run.sync.sync(NEW, name="s", mode=mode)
    slab = SlabRef("slab-1", NEW)
    for replica in (run.one, run.other):
        assert replica.heard == [
            Fence(2, "s"),
            Pause(2, "s", mode, drain),
            Apply(2, "s", slab),
            Verify(2, "s", slab),
            Resume(2, "s", NEW),
        ]
        assert replica.given == {"fence": 1.0, "pause": 1.0 + drain, "apply": 3.0, "verify": 4.0, "resume": 1.0}
    assert run.serves(NEW)
    assert (result.sync, result.outcome, result.version, result.serving) == ("s", "committed", NEW, NEW)
    assert (result.tensors, result.bytes, result.elements_proven, result.elements) == (2, 40, 10, 10)
    assert (result.stall, result.origin, result.reason, result.agreement) == (0.25, "trainer", "", None)
    assert result.copy_rate > 0
    assert stored(run) == result
    assert run.slabs.pushed == 0


def test_the_worst_replica_is_in_the_result(run: RunByHand) -> None:
    run.one.stall, run.other.stall = 0.5, 0.125
    assert run.sync.sync(NEW).stall == 0.5


class Judge:
    """A probe that says what it was given."""

    command = "prompts"

    def __init__(self) -> None:
        self.prepared = 0

    def prepare(self) -> None:
        self.prepared += 1

    def agreement(self, scores: Mapping[str, Any]) -> Mapping[str, Mapping[str, float]]:
        assert scores == {"r0": ["r0", "prompts"], "r1": ["r1", "prompts"]}
        return {"text": {"tokens": 3.0}}


def test_a_probe_is_scored_after_the_proof_and_before_the_gates_open(run: RunByHand) -> None:
    judge = Judge()
    result = run.sync.sync(NEW, name="s", probe=judge)
    assert run.one.heard[-2:] == [ScoreProbe(2, "s", "prompts"), Resume(2, "s", NEW)]
    assert run.one.given["score"] == 5.0
    assert (judge.prepared, result.agreement) == (1, {"text": {"tokens": 3.0}})


def test_a_transport_pushes_what_was_filled_once_all_stand_still(run: RunByHand) -> None:
    run.slabs.pushes, run.slabs.replica = True, run.other
    run.sync.sync(NEW, name="s")
    assert run.slabs.heard_before_push == ["Fence", "Pause", "Apply"]
    assert run.slabs.pushed == 1
    assert Apply(2, "s", SlabRef("slab-1", NEW), pushed=True) in run.one.heard
    assert run.serves(NEW)


def test_after_a_push_that_fails_every_replica_is_replaced(run: RunByHand) -> None:
    run.slabs.pushes, run.slabs.push_fails = True, WeightUpdateError("the link is down")
    with pytest.raises(SyncRolledBackError, match="the link is down"):
        run.sync.sync(NEW, name="s")
    assert run.serves(OLD)
    assert (run.one.ends, run.other.ends) == (1, 1)
    assert run.journal.record("s").decision == "abort"  # type: ignore[union-attr]


UNREACHABLE = (
    ReplicaDeadError("its process is gone"),
    ReplicaStoppedError("it is stopped"),
    ReplicaSilentError("it is silent"),
    EngineDeadError("its engine is gone"),
)


@pytest.mark.parametrize("command", [Pause, Apply, Verify])
@pytest.mark.parametrize("error", UNREACHABLE, ids=lambda error: type(error).__name__)
def test_a_replica_that_cannot_be_reached_is_replaced_without_being_asked_again(
    run: RunByHand, command: type[Command], error: OmniRLError
) -> None:
    run.one.fails[command] = [error]
    with pytest.raises(SyncRolledBackError, match=f"{ {Pause: 'pause', Apply: 'apply', Verify: 'verify'}[command] }: "):
        run.sync.sync(NEW, name="s")
    assert run.serves(OLD)
    assert (run.one.ends, run.other.ends) == (1, 0)
    after = run.one.told()
    assert after[after.index(command.__name__) + 1] == "Quarantine"
    assert stored(run).replaced == {"r0": str(error)}
    assert stored(run).reason.endswith(f": replica r0: {error}")
    assert run.one.given["quarantine"] == 2.0


@pytest.mark.parametrize("command", [Pause, Apply, Verify])
def test_a_replica_that_only_refused_is_brought_back_itself(run: RunByHand, command: type[Command]) -> None:
    run.one.fails[command] = [SlabError("it cannot read the slab")]
    with pytest.raises(SyncRolledBackError, match="replica r0: it cannot read the slab"):
        run.sync.sync(NEW, name="s")
    assert run.serves(OLD)
    assert (run.one.ends, run.other.ends) == (0, 0)
    assert Fence(3, "s") in run.one.heard
    assert stored(run).replaced == {}
    assert {event.detail for event in run.events if event.what == "failed"} == {"it cannot read the slab"}


def test_all_that_failed_are_named_in_order_and_each_difference_once(run: RunByHand) -> None:
    run.one.proofs, run.other.proofs = [("a: differs", "b: differs")], [("b: differs",)]
    with pytest.raises(SyncRolledBackError) as error:
        run.sync.sync(NEW, name="s")
    told = f"verify: replica r0: does not hold {NEW}: a: differs; b: differs; replica r1: does not hold {NEW}: b: diff"
    assert told in str(error.value)
    result = stored(run)
    assert result.mismatches == ("a: differs", "b: differs")
    assert (result.elements_proven, result.elements, result.stall) == (9, 10, 0.25)
    assert (result.version, result.serving, result.outcome) == (NEW, OLD, "rolled_back")


@pytest.mark.parametrize(("command", "asked"), [(Pause, 0), (Apply, 1)])
def test_without_a_way_back_whoever_was_touched_is_replaced(run: RunByHand, command: type[Command], asked: int) -> None:
    run.slabs.pushes = True
    run.one.fails[command] = [ReplicaDeadError("its process is gone")]
    with pytest.raises(SyncRolledBackError):
        run.sync.sync(NEW, name="s")
    assert run.serves(OLD)
    assert (run.one.ends, run.other.ends) == (1, asked)
    replaced = stored(run).replaced
    assert replaced["r0"] == "its process is gone"
    if asked:
        assert replaced["r1"] == "its transport has no way back: apply: replica r0: its process is gone"


class Clock:
    """Time that passes where somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(transaction, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep))

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds < 1
        self.now += seconds


def test_a_decision_that_was_written_stands_though_the_journal_reported_a_failure(
    run: RunByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(monkeypatch)
    run.journal.fails["decide"] = [(JournalError("the disk is full"), True)]
    assert run.sync.sync(NEW, name="s").outcome == "committed"
    assert run.serves(NEW)


def test_a_decision_that_was_not_written_in_time_is_against_the_new_weights(
    run: RunByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    run.journal.fails["decide"] = [(JournalError("the disk is full"), False)] * 3
    with pytest.raises(SyncRolledBackError, match=r"rolled back, .*: the decision could not be written in time"):
        run.sync.sync(NEW, name="s")
    assert run.serves(OLD)
    assert run.journal.tried["decide"] == 1 + 4
    assert clock.now == pytest.approx(100.4)


def test_a_decision_that_cannot_be_written_at_all_leaves_the_gates_closed(
    run: RunByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    run.journal.fails["decide"] = [(JournalError("the disk is full"), False)] * 100
    with pytest.raises(SyncUndecidedError, match=r"sync s could not be decided: the disk is full. Its replicas stay"):
        run.sync.sync(NEW, name="s")
    assert 101.0 < clock.now < 101.5
    assert (run.one.standing, run.other.standing) == ("proven", "proven")
    run.journal.fails.clear()
    assert run.sync.sync("run/1/2/c").serving == "run/1/2/c"
    assert run.serves("run/1/2/c")
    left = stored(run)
    assert (left.outcome, left.serving, left.reason) == (
        *("rolled_back", OLD, "its coordinator ended before anything was decided"),
    )


@pytest.mark.parametrize(("failures", "error"), [(49, SyncRolledBackError), (53, SyncUndecidedError)])
def test_a_journal_has_ten_seconds_to_come_back(
    monkeypatch: pytest.MonkeyPatch, failures: int, error: type[Exception]
) -> None:
    """A fifth of a second lies between two tries."""
    clock = Clock(monkeypatch)
    run = RunByHand(deadlines=Deadlines())
    run.journal.fails["decide"] = [(JournalError("the disk is full"), False)] * (1 + failures)
    with pytest.raises(error):
        run.sync.sync(NEW)
    assert 109 < clock.now < 111
    run.sync.close()


def test_a_result_that_cannot_be_written_is_told_and_given_all_the_same(run: RunByHand) -> None:
    run.journal.fails["finish"] = [(JournalError("the disk is full"), False)]
    assert run.sync.sync(NEW, name="s").outcome == "committed"
    (failed,) = [event for event in run.events if event.what == "failed"]
    assert (failed.sync, failed.phase, failed.replica, failed.detail) == ("s", Phase.IDLE, None, "the disk is full")
    run.sync.repair()
    assert stored(run).outcome == "committed"


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt()], ids=["a bug", "an interrupt"])
def test_what_is_no_error_of_ours_is_raised_after_everything_is_settled(run: RunByHand, error: BaseException) -> None:
    with pytest.raises(type(error)):
        run.sync.sync(error, name="s")
    result = stored(run)
    assert (result.outcome, result.version, result.serving) == ("rolled_back", "", OLD)
    assert (result.tensors, result.bytes, result.elements_proven, result.elements, result.stall) == (0, 0, 0, 0, 0.0)
    assert (result.origin, result.nonfinite, result.mismatches, result.agreement) == (None, (), (), None)
    assert result.reason == f"{type(error).__name__}: {error}"
    assert run.serves(OLD)
    assert run.one.told() == ["Fence"]
    assert run.sync.running is None
    run.one.fails[Apply] = [error]
    with pytest.raises(type(error)):
        run.sync.sync(NEW, name="t")
    assert run.serves(OLD)
    assert stored(run, "t").reason == f"{type(error).__name__}: {error}"


def test_a_source_that_fails_touches_nobody(run: RunByHand) -> None:
    with pytest.raises(SyncRolledBackError, match=r"sync s to new weights was rolled back, .* serve run/1/0/a: no r"):
        run.sync.sync(SlabError("no room"), name="s")
    assert run.one.told() == ["Fence"]
    assert run.journal.record("s").decision == "abort"  # type: ignore[union-attr]
    assert [event.phase for event in run.events if event.what == "entered"] == [Phase.PREPARE, Phase.IDLE]


def test_a_sync_that_the_journal_does_not_know_is_not_decided(run: RunByHand) -> None:
    run.journal.fails["begin"] = [(JournalError("the disk is full"), False)]
    with pytest.raises(SyncRolledBackError, match="the disk is full"):
        run.sync.sync(NEW, name="s")
    assert run.journal.record("s") is None
    assert run.serves(OLD)
    run.sync.sync(NEW, name="s")
    assert run.serves(NEW)


@pytest.mark.parametrize("command", [Fence, Pause, Apply, Verify, Resume])
def test_once_another_took_over_nothing_more_is_done(run: RunByHand, command: type[Command]) -> None:
    run.one.fails[command] = [FencedError("a newer one is at work")]
    with pytest.raises(FencedError):
        run.sync.sync(NEW, name="s")
    assert run.one.told()[-1] == command.__name__
    record = run.journal.record("s")
    assert (record and record.decision) == ("commit" if command is Resume else None)
    assert record is None or record.finished is None


def test_replicas_that_were_left_out_join_before_the_source_is_asked(run: RunByHand) -> None:
    run.one.standing, run.one.holds = "quarantined", None
    run.other.standing, run.other.holds = "closed", None
    result = run.sync.sync(NEW, name="s")
    assert result.replaced == {"r0": "it is quarantined: as a test has it"}
    assert run.other.told() == [*("Fence", "Apply", "Verify", "Resume"), *("Pause", "Apply", "Verify", "Resume")]
    assert (run.one.ends, run.other.ends) == (1, 0)
    assert run.serves(NEW)


def test_a_sync_goes_on_without_a_replica_that_has_no_successor(run: RunByHand) -> None:
    run.one.fails[Fence] = [ReplicaDeadError("its process is gone")]
    run.one.successor = ReplicaDeadError("there is no room")
    result = run.sync.sync(NEW, name="s")
    assert result.out == {"r0": "its process is gone; no successor: there is no room"}
    assert run.one.told() == ["Fence", "Quarantine"]
    assert (run.other.standing, run.other.holds) == ("serving", NEW)


def test_without_any_replica_no_source_is_asked(run: RunByHand) -> None:
    for replica in (run.one, run.other):
        replica.fails[Fence] = [ReplicaDeadError("gone")]
        replica.successor = ReplicaDeadError("no room")
    with pytest.raises(SyncRolledBackError) as error:
        run.sync.sync(NEW, name="s")
    assert str(error.value).endswith("r0: gone; no successor: no room; replica r1: gone; no successor: no room")
    assert run.slabs.allowed == [False]
    assert not isinstance(error.value, QuarantinedError)


def test_a_replica_that_does_not_open_is_replaced_after_the_decision(run: RunByHand) -> None:
    run.one.fails[Resume] = [ReplicaSilentError("it is silent")]
    result = run.sync.sync(NEW, name="s")
    assert (result.outcome, result.replaced) == ("committed", {"r0": "it is silent"})
    assert run.serves(NEW)
    assert [event.phase for event in run.events if event.what == "entered"][-3:] == [
        *(Phase.RESUME, Phase.QUARANTINE, Phase.IDLE)
    ]
