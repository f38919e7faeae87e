"""The transaction in one process: what callers are told, who hears what and when."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from omni_rl.errors import (
    ConfigError,
    FencedError,
    QuarantinedError,
    ReplicaDeadError,
    SlabFullError,
    SyncRolledBackError,
    SyncRunningError,
    WeightUpdateError,
)
from omni_rl.ledger.sync_journal import opened_journal
from omni_rl.sync.manifest import Manifest
from omni_rl.sync.replica import Pause
from omni_rl.sync.replica_group import Deadlines
from omni_rl.sync.result import SyncResult
from omni_rl.sync.slab import Slab
from omni_rl.sync.states import Phase
from omni_rl.sync.transport import SlabTransport
from omni_rl.sync.version import WeightVersion, same_weights
from omni_rl.sync.weight_sync import WeightSync
from tests.chaos.fake_engine import RUN, Faults, NumberSource
from tests.chaos.in_process import BrokenSource, LocalRun, SlowSource
from tests.sync.conftest import files_end_at


@pytest.fixture
def run(tmp_path: Path) -> Iterator[LocalRun]:
    started = LocalRun(tmp_path)
    yield started
    started.close()


def number(version: str) -> int:
    return WeightVersion.parse(version).number


def test_versions_are_of_the_same_weights_where_their_digests_are_equal() -> None:
    assert same_weights("run/1/2/0123456789abcdef", "other/3/4/0123456789abcdef")
    assert not same_weights("run/1/2/0123456789abcdef", "run/1/2/0123456789abcdee")


def test_a_run_opens_on_its_first_weights(run: LocalRun) -> None:
    assert number(run.sync.version) == 0
    assert run.all_serve(run.sync.version)
    assert Phase.ROLLBACK not in {event.phase for event in run.events}


def test_every_replica_serves_what_the_result_says(run: LocalRun) -> None:
    result = run.sync.sync(NumberSource(1))
    assert result.outcome == "committed"
    assert result.version == result.serving == run.sync.version
    assert number(result.version) == 1
    assert run.all_serve(result.version)
    assert (result.tensors, result.bytes) == (3, 336 * 8)
    assert result.elements_proven == result.elements == 336
    assert set(result.seconds) == {"prepare", "pause", "apply", "verify", "commit", "resume"}
    assert 0 < result.stall <= sum(seconds for phase, seconds in result.seconds.items() if phase != "prepare")
    assert (result.replaced, result.out, result.mismatches) == ({}, {}, ())
    assert [event.phase for event in run.events if event.what == "entered"][-7:] == [
        *(Phase.PREPARE, Phase.PAUSE, Phase.APPLY, Phase.VERIFY, Phase.COMMIT, Phase.RESUME, Phase.IDLE)
    ]


def test_requests_under_way_change_version_between_two_tokens(run: LocalRun) -> None:
    answers = [replica.sample(300) for replica in run.replicas.values()]
    while not all(replica.engine.busy for replica in run.replicas.values()):
        pass
    old, new = run.sync.version, run.sync.sync(NumberSource(1)).version
    for answer in answers:
        (tokens,) = answer.result(20)
        assert all(token.is_right() for token in tokens)
        versions = [token.version for token in tokens]
        assert versions == sorted(versions, key=number)
        assert set(versions) == {old, new}


def test_drain_finishes_what_is_under_way_first(run: LocalRun) -> None:
    answers = [replica.sample(30) for replica in run.replicas.values()]
    while not all(replica.engine.busy for replica in run.replicas.values()):
        pass
    old = run.sync.version
    run.sync.sync(NumberSource(1), mode="drain")
    for answer in answers:
        assert {token.version for token in answer.result(0)[0]} == {old}


def test_a_drain_that_takes_too_long_changes_nothing(tmp_path: Path) -> None:
    run = LocalRun(tmp_path)
    hasty = WeightSync(run.journal, run.slabs, list(run.replicas.values()), deadlines=Deadlines(drain=0.05))
    hasty.open(NumberSource(0))
    long = run.replicas["r0"].sample(500)
    while not run.replicas["r0"].engine.busy:
        pass
    with pytest.raises(SyncRolledBackError, match=r"replica r0: .*not finished within the 0.05 s given to drain"):
        hasty.sync(NumberSource(1), mode="drain")
    assert run.all_serve(hasty.version)
    assert all(token.is_right() for token in long.result(20)[0])
    hasty.close()
    run.close()


@pytest.mark.parametrize("key", [None, "step 0", "step 2"])
@pytest.mark.parametrize("of_first", [None, "step 1"])
def test_only_one_sync_runs_and_the_other_is_told_which(run: LocalRun, of_first: str | None, key: str | None) -> None:
    slow = SlowSource(1)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(run.sync.sync, slow, key=of_first)
        assert slow.started.wait(10)
        assert run.sync.running is not None
        running, phase = run.sync.running
        assert phase is Phase.PREPARE
        with pytest.raises(SyncRunningError, match=f"sync {running} is under way"):
            run.sync.sync(NumberSource(2), key=key)
        slow.go.set()
        assert first.result().sync == running
    assert number(run.sync.version) == 1


def test_callers_with_one_key_share_one_operation(run: LocalRun) -> None:
    slow = SlowSource(1)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(run.sync.sync, slow, key="step 1")
        assert slow.started.wait(10)
        second = threads.submit(run.sync.sync, NumberSource(2), key="step 1")
        slow.go.set()
        assert first.result() == second.result()
    assert run.sync.sync(NumberSource(3), key="step 1") == first.result()
    assert number(run.sync.version) == 1
    assert run.sync.sync(NumberSource(3), key="step 2") != first.result()


def test_one_key_has_one_failure_too(run: LocalRun) -> None:
    for _ in range(2):
        with pytest.raises(SyncRolledBackError, match="the trainer is gone"):
            run.sync.sync(BrokenSource(), key="step 1")
    with pytest.raises(SyncRolledBackError, match="the trainer is gone"):
        run.sync.sync(NumberSource(1), key="step 1")
    assert number(run.sync.sync(NumberSource(1), key="step 2").serving) == 1


class FullDisk(NumberSource):
    """Weights whose manifest the disk has no room for."""

    def fill(self, slab: Slab) -> Manifest:
        with files_end_at(64):
            return super().fill(slab)


def test_a_disk_that_is_full_at_the_source_changes_nothing(run: LocalRun) -> None:
    version = run.sync.version
    with pytest.raises(SyncRolledBackError, match=r"slab-1\.json cannot be written: .*File too large"):
        run.sync.sync(FullDisk(1))
    assert run.all_serve(version)
    assert run.all_serve(run.sync.sync(NumberSource(1)).version)


def test_a_slab_that_was_cut_is_made_anew_by_the_next_sync_and_at_the_next_start(tmp_path: Path) -> None:
    run = LocalRun(tmp_path)
    os.truncate(run.slabs.idle(run.journal.committed()), 100)
    version = run.sync.sync(NumberSource(1)).version
    assert run.all_serve(version)
    os.truncate(run.slabs.idle(run.journal.committed()), 100)
    run.close(remove=False)
    again = LocalRun(tmp_path)
    assert again.all_serve(version)
    assert again.all_serve(again.sync.sync(NumberSource(2)).version)
    again.close()


def test_a_source_that_fails_pauses_nobody(run: LocalRun) -> None:
    version = run.sync.version
    with pytest.raises(SyncRolledBackError, match=f"to new weights was rolled back, replicas serve {version}"):
        run.sync.sync(BrokenSource())
    assert run.all_serve(version)
    assert not [heard for replica in run.replicas.values() for heard in replica.heard if isinstance(heard, Pause)]


def test_an_engine_that_throws_what_nobody_foresaw_is_replaced(run: LocalRun, monkeypatch: pytest.MonkeyPatch) -> None:
    version = run.sync.version
    monkeypatch.setattr(run.replicas["r1"].engine, "verify", lambda slab: 1 / 0)
    with pytest.raises(SyncRolledBackError, match="replica r1: Verify ended in ZeroDivisionError"):
        run.sync.sync(NumberSource(1))
    assert run.all_serve(version)


def test_the_defective_tensor_is_in_the_result(run: LocalRun) -> None:
    run.replicas["r1"].engine.faults = Faults(skip_tensor="head")
    with pytest.raises(SyncRolledBackError) as error:
        run.sync.sync(NumberSource(1), key="defective")
    assert "replica r1: does not hold chaos/1/1/" in str(error.value)
    record = run.journal.by_key("defective")
    assert record is not None
    assert record.result is not None
    assert SyncResult.from_json(record.result).mismatches == ("head: element 0 differs",)


def test_another_coordinator_takes_over(run: LocalRun) -> None:
    with opened_journal(run.ledger, RUN, force=True) as journal:
        other = WeightSync(journal, run.slabs, list(run.replicas.values()))
        other.open(NumberSource(0))
        with pytest.raises(FencedError, match="a newer one took over"):
            run.sync.sync(NumberSource(1))
        assert number(other.version) == 0
        assert number(other.sync(NumberSource(2)).serving) == 2
        other.close()


def test_a_dead_replica_is_replaced_before_anything_else(run: LocalRun) -> None:
    run.sync.sync(NumberSource(1))
    run.replicas["r0"].kill()
    result = run.sync.sync(NumberSource(2))
    assert "its process is gone" in result.replaced["r0"]
    assert run.all_serve(result.version)


def test_a_replica_without_a_successor_is_left_out_and_heals_later(run: LocalRun) -> None:
    broken = run.replicas["r0"]
    broken.kill()
    broken.barren = True
    result = run.sync.sync(NumberSource(1))
    assert "no room for another" in result.out["r0"]
    assert run.replicas["r1"].service.status.holds == result.serving
    broken.barren = False
    healed = run.sync.repair(name="served-1")
    assert (healed.sync, set(healed.replaced)) == ("served-1", {"r0"})
    assert run.all_serve(result.serving)


def test_without_any_replica_nothing_is_reported_as_done(run: LocalRun) -> None:
    for replica in run.replicas.values():
        replica.kill()
        replica.barren = True
    with pytest.raises(SyncRolledBackError, match="no room for another"):
        run.sync.sync(NumberSource(1))
    with pytest.raises(QuarantinedError, match="no replica serves"):
        run.sync.repair()
    for replica in run.replicas.values():
        replica.barren = False
    assert run.all_serve(run.sync.sync(NumberSource(1)).version)


def test_replicas_need_names_of_their_own(run: LocalRun) -> None:
    with pytest.raises(ConfigError, match="each its own name"):
        WeightSync(run.journal, run.slabs, [run.replicas["r0"], run.replicas["r0"]])


@dataclass
class FakeProbe:
    """Remembers what was asked for, and what the replicas held then."""

    run: LocalRun
    command: str = "probe"
    prepared_while: list[str] = field(default_factory=list)
    scores: dict[str, Any] = field(default_factory=dict)
    error: Exception | None = None

    def prepare(self) -> None:
        self.prepared_while += [standing for standing, _ in self.run.standings().values()]

    def agreement(self, scores: Mapping[str, Any]) -> Mapping[str, Mapping[str, float]]:
        if self.error is not None:
            raise self.error
        self.scores = dict(scores)
        return {"text": {"tokens": 1.0}}


def test_the_probe_is_prepared_outside_the_stall_and_scored_on_the_new_weights(run: LocalRun) -> None:
    probe = FakeProbe(run)
    result = run.sync.sync(NumberSource(1), probe=probe)
    assert probe.prepared_while == ["serving", "serving"]
    assert [token.held for tokens in probe.scores.values() for token in tokens] == [[1], [1]]
    assert result.agreement == {"text": {"tokens": 1.0}}


def test_a_probe_that_cannot_be_judged_rolls_back(run: LocalRun) -> None:
    version = run.sync.version
    with pytest.raises(SyncRolledBackError, match="no such kind"):
        run.sync.sync(NumberSource(1), probe=FakeProbe(run, error=ConfigError("no such kind")))
    assert run.all_serve(version)


def reopened(run: LocalRun, initial: Any) -> WeightSync:
    sync = WeightSync(run.journal, run.slabs, list(run.replicas.values()))
    sync.open(initial)
    return sync


def test_lost_slabs_are_filled_again_by_whoever_has_the_weights(run: LocalRun) -> None:
    version = run.sync.sync(NumberSource(1)).version
    for path in run.slabs.paths:
        run.slabs.at(str(path)).discard()
    with pytest.raises(WeightUpdateError, match=r"the run's weights chaos/1/1/.* are lost.*has chaos/1/0/"):
        reopened(run, NumberSource(0))
    run.replicas["r0"].kill()
    sync = reopened(run, NumberSource(1))
    assert sync.version == version
    assert run.all_serve(version)
    sync.close()


def test_a_refused_source_leaves_the_weights_that_only_another_host_lacks(
    run: LocalRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = run.sync.sync(NumberSource(1)).version
    with monkeypatch.context() as patch:
        patch.setattr(SlabTransport, "holds", lambda transport, slab: False)
        with pytest.raises(WeightUpdateError, match="the source given has chaos/1/0/"):
            reopened(run, NumberSource(0))
        with pytest.raises(SlabFullError, match=r"slab-0\.json cannot be written"):
            reopened(run, FullDisk(1))
    sync = reopened(run, NumberSource(0))
    assert sync.version == version
    assert run.all_serve(version)
    sync.close()


def test_a_run_whose_first_weights_never_came_opens_on_others(tmp_path: Path) -> None:
    run = LocalRun(tmp_path, opened=False)
    with pytest.raises(ReplicaDeadError, match="the trainer is gone"):
        run.sync.open(BrokenSource())
    assert {standing for standing, _ in run.standings().values()} == {"closed"}
    run.sync.open(NumberSource(0))
    assert run.all_serve(run.sync.version)
    assert run.journal.unfinished() is None
    run.close()
