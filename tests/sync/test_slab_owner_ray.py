"""Slab owners as Ray actors: they may die, and weights get to the slabs of other hosts through the object store."""

import contextlib
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import ray

from omni_rl.errors import SlabError, SlabFullError, SlabOwnerDeadError, SourceError
from omni_rl.processes import life, wait_until_gone
from omni_rl.sync import object_store
from omni_rl.sync.manifest import Entry
from omni_rl.sync.object_store import ObjectStoreTransport
from omni_rl.sync.slab import Slab
from omni_rl.sync.slab_owner import SlabOwner
from omni_rl.sync.slab_owner_actor import SlabOwnerHandle
from omni_rl.sync.slabs import SlabPair, slab_directory

from .conftest import Given, Weights, flip, make_weights, places, same, write

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def here(tmp_path: Path, weights: Weights) -> Iterator[SlabPair]:
    """This host's slabs."""
    with SlabOwner("run", places(weights), tmp_path / "here") as owner:
        yield SlabPair(owner.directory)


@pytest.fixture
def there(tmp_path: Path, weights: Weights) -> Iterator[SlabOwnerHandle]:
    """Another host, played by another directory of this one."""
    with SlabOwnerHandle.start("run", places(weights), base=tmp_path / "there") as handle:
        yield handle


def kill(handle: SlabOwnerHandle) -> None:
    assert handle.pid is not None
    os.kill(handle.pid, signal.SIGKILL)
    wait_until_gone([handle.pid])


def over_there(handle: SlabOwnerHandle, number: int) -> Slab:
    return Slab.open(handle.directory / f"slab-{number}.weights")


def test_a_killed_slab_owner_is_told_and_replaced_and_its_slabs_are_as_they_were(
    there: SlabOwnerHandle, weights: Weights
) -> None:
    for number in range(2):
        write(over_there(there, number), make_weights(number), number)
    kill(there)
    with pytest.raises(SlabOwnerDeadError, match="its slabs are still there"):
        there.ping()
    assert same(over_there(there, 0).tensors(), weights)
    there.replace()
    there.ping()
    for number in range(2):
        assert same(over_there(there, number).tensors(), make_weights(number))
        assert over_there(there, number).check() == ()


@pytest.mark.parametrize("dead", [False, True])
def test_closing_removes_the_slabs_even_if_the_slab_owner_died(tmp_path: Path, weights: Weights, dead: bool) -> None:
    handle = SlabOwnerHandle.start("run", places(weights), base=tmp_path)
    pid = handle.pid
    assert pid is not None
    if dead:
        kill(handle)
    handle.close()
    handle.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_slab_owner_that_cannot_make_its_slabs_says_why(tmp_path: Path) -> None:
    huge = [Entry("w", "float32", (2**58,), 0)]
    with pytest.raises(SlabFullError, match="bytes are free"):
        SlabOwnerHandle.start("run", huge, base=tmp_path)
    assert not slab_directory("run", tmp_path).exists()


def test_slab_owners_leave_the_processors_to_the_engines(tmp_path: Path, weights: Weights) -> None:
    """More of them than the cluster has processors start."""
    with ExitStack() as owners:
        for run in ("one", "two", "three"):
            owners.enter_context(SlabOwnerHandle.start(run, places(weights), base=tmp_path)).ping()


def reaching(there: SlabOwnerHandle, here: SlabPair) -> ObjectStoreTransport:
    transport = ObjectStoreTransport(lambda address: there)
    assert transport.reach("there", here) == there.directory
    return transport


@pytest.mark.parametrize("message_bytes", [2**26, 100])
def test_weights_arrive_on_the_other_host_in_the_slab_of_the_same_name(
    here: SlabPair, there: SlabOwnerHandle, weights: Weights, message_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "MESSAGE_BYTES", message_bytes)
    transport = reaching(there, here)
    assert not transport.pushes
    pair = SlabPair(here.directory, transport)
    for number in range(2):
        filled = pair.fill(str(pair.paths[number]), Given(make_weights(number), number))
        arrived = over_there(there, number)
        assert str(arrived.sealed().version) == filled.slab.version
        assert same(arrived.tensors(), make_weights(number))
        assert pair.holds(filled.slab)
    flip(there.directory / "slab-1.weights", 5)
    assert not pair.holds(filled.slab)


def test_a_slab_owner_that_died_is_replaced_and_gets_everything(
    here: SlabPair, there: SlabOwnerHandle, weights: Weights
) -> None:
    transport = reaching(there, here)
    kill(there)
    filled = SlabPair(here.directory, transport).fill(here.idle(None), Given(weights))
    assert same(over_there(there, 0).tensors(), weights)
    assert str(over_there(there, 0).sealed().version) == filled.slab.version


@pytest.mark.parametrize("machine", ["this one", "another"])
def test_a_slab_owner_that_is_stopped_is_replaced_and_gets_everything(
    here: SlabPair, there: SlabOwnerHandle, weights: Weights, machine: str
) -> None:
    transport = reaching(there, here)
    stopped = there.pid
    assert stopped is not None
    if machine == "another":
        there.pid = None
        there.silent_after = 1.5
    os.kill(stopped, signal.SIGSTOP)
    try:
        filled = SlabPair(here.directory, transport).fill(here.idle(None), Given(weights))
        assert life(stopped) == "gone"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(stopped, signal.SIGCONT)
    assert same(over_there(there, 0).tensors(), weights)
    assert str(over_there(there, 0).sealed().version) == filled.slab.version


def test_what_was_damaged_before_it_left_is_not_sealed_there(
    here: SlabPair, there: SlabOwnerHandle, weights: Weights
) -> None:
    transport = reaching(there, here)
    slab = here.at(here.idle(None))
    entry = next(entry for entry in write(slab, weights).entries if entry.name == "mixer.A_log")
    flip(slab.path, 8 * entry.offset)
    with pytest.raises(SourceError, match=r"mixer\.A_log arrived damaged"):
        transport.stage(slab)
    with pytest.raises(SlabError, match="not sealed"):
        over_there(there, 0).sealed()
    write(slab, weights)
    transport.stage(slab)
    assert same(over_there(there, 0).tensors(), weights)


@pytest.mark.parametrize("dead", [False, True])
def test_a_host_that_comes_later_gets_what_is_sealed(
    here: SlabPair, there: SlabOwnerHandle, weights: Weights, dead: bool
) -> None:
    """This is as when an engine is replaced on a host that had none, or whose slab owner died."""
    transport = reaching(there, here)
    write(here.at(str(here.paths[0])), weights, 0)
    if dead:
        kill(there)
    transport.reach("there", here)
    assert same(over_there(there, 0).tensors(), weights)
    with pytest.raises(SlabError, match="not sealed"):
        over_there(there, 1).sealed()
    manifest = there.directory / "slab-0.json"
    sealed = manifest.stat().st_mtime_ns
    transport.reach("there", here)
    assert manifest.stat().st_mtime_ns == sealed
