"""A hold of generation beside weight syncs: replicas and their gates as they are, an engine by hand."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from omni_rl.errors import FencedError, SyncRolledBackError
from omni_rl.ledger.sync_journal import opened_journal
from omni_rl.sync.states import Phase, SyncEvent
from omni_rl.sync.weight_sync import WeightSync
from tests.chaos.fake_engine import RUN, NumberSource
from tests.chaos.in_process import LocalRun


@pytest.fixture
def run(tmp_path: Path) -> Iterator[LocalRun]:
    started = LocalRun(tmp_path)
    yield started
    started.close()


def test_nothing_is_generated_while_held_and_everything_after(run: LocalRun) -> None:
    run.sync.hold("maintenance")
    asked = [replica.sample(3, 4) for replica in run.replicas.values()]
    assert not wait(asked, 0.2).done
    assert {replica.service.status.held for replica in run.replicas.values()} == {"maintenance"}
    run.sync.release()
    assert [[len(tokens) for tokens in answers.result(10)] for answers in asked] == [[3, 4], [3, 4]]


def test_a_sync_goes_through_a_hold_and_opens_nothing(run: LocalRun) -> None:
    run.sync.hold("maintenance")
    asked = [replica.sample(3) for replica in run.replicas.values()]
    result = run.sync.sync(NumberSource(1), name="by-name")
    assert (result.sync, result.outcome) == ("by-name", "committed")
    assert run.all_serve(result.version)
    assert not wait(asked, 0.2).done
    run.sync.release()
    tokens = [token for answers in asked for (answer,) in [answers.result(10)] for token in answer]
    assert {token.version for token in tokens} == {result.version}


def test_draining_cannot_be_waited_for_behind_a_hold(run: LocalRun) -> None:
    """The requests under way would never end: it is refused at once, and the old weights stay."""
    before = run.sync.version
    asked = run.replicas["r0"].sample(10_000)
    while not run.replicas["r0"].engine.busy:
        pass
    run.sync.hold("maintenance")
    with pytest.raises(SyncRolledBackError, match="maintenance"):
        run.sync.sync(NumberSource(1), mode="drain")
    assert run.sync.version == before
    assert not asked.done()


def test_a_hold_that_comes_in_a_rollback_holds(run: LocalRun) -> None:
    """The rollback has an epoch of its own by then."""
    run.replicas["r0"].engine.faults.flip_after_apply = True
    held: list[Future[None]] = []
    with ThreadPoolExecutor() as person:

        def observe(event: SyncEvent) -> None:
            if event.phase is Phase.ROLLBACK and event.what == "done" and not held:
                held.append(person.submit(run.sync.hold, "breach"))

        run.sync._observer = observe
        with pytest.raises(SyncRolledBackError):
            run.sync.sync(NumberSource(1))
    held[0].result(10)
    assert {replica.service.status.held for replica in run.replicas.values()} == {"breach"}


def test_a_coordinator_that_was_replaced_holds_and_releases_nothing(run: LocalRun) -> None:
    with opened_journal(run.ledger, RUN, force=True) as journal:
        successor = WeightSync(journal, run.slabs, list(run.replicas.values()))
        successor.open(NumberSource(0))
        successor.hold("maintenance")
        with pytest.raises(FencedError):
            run.sync.release()
        assert {replica.service.status.held for replica in run.replicas.values()} == {"maintenance"}
        successor.close()
