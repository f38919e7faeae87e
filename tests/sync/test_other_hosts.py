"""Slab owners on other hosts, and weights on their way there: what is sent, to whom, and what is lost with a host."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import RaySystemError

from omni_rl.errors import (
    SlabBusyError,
    SlabError,
    SlabFullError,
    SlabOwnerDeadError,
    SourceError,
)
from omni_rl.sync import object_store, slab_owner_actor
from omni_rl.sync.manifest import Entry
from omni_rl.sync.object_store import ObjectStoreTransport
from omni_rl.sync.slab import Slab
from omni_rl.sync.slab_owner import SlabOwner
from omni_rl.sync.slab_owner_actor import SlabOwnerHandle, node_at
from omni_rl.sync.slabs import SlabPair

from .conftest import Given, Weights, flip, make_weights, places, same, write
from .elsewhere import FAR, FAR_NODE, HERE, NEAR_NODE, Cluster, directory


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


class Hosts:
    """This host's slabs, and a transport that makes slab owners in directories of the other hosts' names."""

    def __init__(self, base: Path, weights: Weights) -> None:
        self.base = base
        self.owner = SlabOwner("run", places(weights), base / "here")
        self.handles: list[SlabOwnerHandle] = []
        self.transport = ObjectStoreTransport(self.start)
        self.pair = SlabPair(self.owner.directory, self.transport)

    def start(self, address: str) -> SlabOwnerHandle:
        at = places(make_weights())
        self.handles.append(SlabOwnerHandle.start("run", at, base=self.base / address, node=node_at(address)))
        return self.handles[-1]

    def reach(self, address: str) -> Path:
        return self.transport.reach(address, self.pair)

    def slab(self, address: str, number: int) -> Slab:
        return Slab.open(directory(self.base / address) / f"slab-{number}.weights")


@pytest.fixture
def hosts(cluster: Cluster, tmp_path: Path, weights: Weights) -> Hosts:
    return Hosts(tmp_path, weights)


def test_a_host_is_found_by_its_address_while_it_is_there(cluster: Cluster) -> None:
    assert (node_at(HERE), node_at(FAR)) == (NEAR_NODE, FAR_NODE)
    cluster.alive[FAR_NODE] = False
    for address in (FAR, "10.0.0.3"):
        with pytest.raises(SlabOwnerDeadError, match=f"Ray has no node at {address} for a slab owner"):
            node_at(address)


def test_an_owner_is_known_by_its_process_only_on_this_host(cluster: Cluster, tmp_path: Path, weights: Weights) -> None:
    near = SlabOwnerHandle.start("run", places(weights), base=tmp_path / "near")
    far = SlabOwnerHandle.start("run", places(weights), base=tmp_path / "far", node=FAR_NODE)
    assert (near.pid, near.address, near.directory) == (100, HERE, directory(tmp_path / "near"))
    assert (far.pid, far.address, far.directory) == (None, FAR, directory(tmp_path / "far"))
    assert "scheduling_strategy" not in cluster.options[0]
    assert not cluster.options[1]["scheduling_strategy"].soft
    for options in cluster.options:
        assert 0 < options["num_cpus"] < 0.1
        assert (options["max_restarts"], options["concurrency_groups"]) == (0, {"health": 1})
    assert (near.has_host, far.has_host) == (True, True)
    cluster.alive[FAR_NODE] = False
    assert (near.has_host, far.has_host) == (True, False)
    near.ping()
    near.close()
    assert cluster.ended == [100]
    far.close()
    assert cluster.ended == [100]
    assert not directory(tmp_path / "near").exists()
    with pytest.raises(SlabOwnerDeadError, match=r"the slab owner of run 'run' was closed; start another"):
        near.ping()
    near.close()


@pytest.mark.parametrize("gone", [NEAR_NODE, FAR_NODE])
def test_an_owner_has_a_host_as_long_as_its_own_is_there(cluster: Cluster, weights: Weights, gone: str) -> None:
    at = places(weights)
    handles = {node: SlabOwnerHandle("run", at, Path("/slabs"), node) for node in (NEAR_NODE, FAR_NODE, None)}
    cluster.alive[gone] = False
    assert {node for node, handle in handles.items() if not handle.has_host} == {gone}


def test_a_context_ends_its_owner_and_one_that_ray_has_left_is_left(
    cluster: Cluster, tmp_path: Path, weights: Weights
) -> None:
    with SlabOwnerHandle.start("run", places(weights), base=tmp_path) as handle:
        assert handle.directory.exists()
    assert list(tmp_path.iterdir()) == []
    other = SlabOwnerHandle.start("other", places(weights), base=tmp_path)
    cluster.initialized = False
    other.close()
    assert other.directory.exists()


def test_an_owner_that_died_is_replaced_and_its_slabs_are_as_they_were(
    cluster: Cluster, tmp_path: Path, weights: Weights
) -> None:
    handle = SlabOwnerHandle.start("run", places(weights), base=tmp_path, node=FAR_NODE)
    write(Slab.open(handle.directory / "slab-0.weights"), weights)
    cluster.processes[0].die()
    with pytest.raises(
        SlabOwnerDeadError,
        match=rf"^the owner of run 'run''s slabs at {FAR}: its process ended during alive; .*; its slabs are still",
    ):
        handle.ping()
    handle.replace()
    handle.ping()
    assert same(Slab.open(handle.directory / "slab-0.weights").tensors(), weights)
    cluster.processes[1].die()
    handle.close()
    assert [process.called[-1] for process in cluster.processes] == ["alive", "close", "close"]
    assert list(tmp_path.iterdir()) == []


def test_an_owner_that_ray_cannot_start_says_so(cluster: Cluster, tmp_path: Path, weights: Weights) -> None:
    cluster.placed = False
    with pytest.raises(SlabOwnerDeadError, match=r"Ray did not start the owner of run 'run''s slabs within 120 s"):
        SlabOwnerHandle.start("run", places(weights), base=tmp_path)
    assert cluster.processes[0].died
    cluster.placed, cluster.alive[FAR_NODE] = True, False
    with pytest.raises(SlabOwnerDeadError, match=r"Ray cannot start the owner of run 'run''s slabs: .*; the slabs are"):
        SlabOwnerHandle.start("run", places(weights), base=tmp_path, node=FAR_NODE)
    assert list(tmp_path.iterdir()) == []


def test_an_owner_that_has_no_room_ends(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(SlabFullError, match="bytes are free"):
        SlabOwnerHandle.start("run", [Entry("w", "float32", (2**58,), 0)], base=tmp_path)
    assert cluster.processes[0].died


class Clock:
    """Time that passes where somebody sleeps, and wakes a little late; at `free_at` the slabs are given up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: SlabOwner, free_at: float) -> None:
        self.now, self.owner, self.free_at = 0.0, owner, free_at
        monkeypatch.setattr(slab_owner_actor, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep))

    def sleep(self, seconds: float) -> None:
        self.now += seconds + 0.01
        if self.now >= self.free_at:
            self.owner.close(remove=False)


@pytest.mark.parametrize(("free_at", "replaced"), [(9.5, True), (99.0, False)])
def test_an_owner_waits_for_the_one_before_it_on_another_machine(
    cluster: Cluster,
    tmp_path: Path,
    weights: Weights,
    monkeypatch: pytest.MonkeyPatch,
    free_at: float,
    replaced: bool,
) -> None:
    handle = SlabOwnerHandle.start("run", places(weights), base=tmp_path, node=FAR_NODE)
    handle._actor.die()
    holder = SlabOwner("run", places(weights), tmp_path)
    clock = Clock(monkeypatch, holder, free_at)
    if replaced:
        handle.replace()
        handle.ping()
        assert 9.5 <= clock.now < 10.5
    else:
        with pytest.raises(SlabBusyError, match="belongs to another slab owner"):
            handle.replace()
        assert 10.0 <= clock.now <= 10.5
    holder.close(remove=False)


def test_an_owner_that_is_no_successor_waits_for_nobody(
    cluster: Cluster, tmp_path: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SlabOwner("run", places(weights), tmp_path) as holder:
        clock = Clock(monkeypatch, holder, 99.0)
        with pytest.raises(SlabBusyError):
            SlabOwnerHandle.start("run", places(weights), base=tmp_path)
    assert clock.now == 0.0


@pytest.mark.parametrize("message_bytes", [2**26, 400, 1])
def test_weights_arrive_on_every_host_in_the_slab_of_the_same_name(
    hosts: Hosts, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, message_bytes: int
) -> None:
    monkeypatch.setattr(object_store, "MESSAGE_BYTES", max(message_bytes, 50))
    assert not hosts.transport.pushes
    for address in (HERE, FAR):
        assert hosts.reach(address) == directory(hosts.base / address)
    assert len(hosts.handles) == 2
    for number in range(2):
        filled = hosts.pair.fill(str(hosts.pair.paths[number]), Given(make_weights(number), number))
        assert hosts.pair.holds(filled.slab)
        for address in (HERE, FAR):
            assert str(hosts.slab(address, number).sealed().version) == filled.slab.version
            assert same(hosts.slab(address, number).tensors(), make_weights(number))
    used = Slab.open(hosts.pair.paths[0]).sealed().nbytes
    assert sum(cluster.messages) == 2 * used
    assert max(cluster.messages) == min(used, max(message_bytes, 50))
    flip(directory(hosts.base / FAR) / "slab-1.weights", 5)
    assert not hosts.pair.holds(filled.slab)


def test_at_most_two_messages_are_on_their_way(hosts: Hosts, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store has little room, whatever the model's size."""
    monkeypatch.setattr(object_store, "MESSAGE_BYTES", 100)
    hosts.reach(FAR)
    under_way: list[int] = []
    wait = hosts.handles[0].wait

    def counted_wait(reference: object, what: str) -> object:
        if what == "receive":
            under_way.append(len(cluster.messages) - len(under_way))
        return wait(reference, what)

    monkeypatch.setattr(hosts.handles[0], "wait", counted_wait)
    hosts.pair.fill(hosts.pair.idle(None), Given(make_weights()))
    assert len(under_way) == len(cluster.messages) > 4
    assert set(under_way[:-1]) == {2}
    assert under_way[-1] == 1


def test_a_host_that_comes_later_gets_what_is_sealed_and_only_what_it_lacks(hosts: Hosts, cluster: Cluster) -> None:
    filled = hosts.pair.fill(str(hosts.pair.paths[1]), Given(make_weights(1), 1))
    hosts.reach(FAR)
    assert str(hosts.slab(FAR, 1).sealed().version) == filled.slab.version
    assert hosts.slab(FAR, 0).manifest is None
    sent = len(cluster.messages)
    hosts.reach(FAR)
    assert len(cluster.messages) == sent
    assert len(hosts.handles) == 1


@pytest.mark.parametrize("at", ["reach", "fill"])
def test_an_owner_that_died_is_replaced_and_gets_everything(hosts: Hosts, cluster: Cluster, at: str) -> None:
    hosts.reach(FAR)
    cluster.processes[0].die()
    if at == "reach":
        hosts.reach(FAR)
    filled = hosts.pair.fill(hosts.pair.idle(None), Given(make_weights()))
    assert len(cluster.processes) == 2
    assert hosts.pair.holds(filled.slab)
    assert same(hosts.slab(FAR, 0).tensors(), make_weights())


def test_a_host_that_is_gone_is_forgotten(hosts: Hosts, cluster: Cluster) -> None:
    for address in (HERE, FAR):
        hosts.reach(address)
    cluster.alive[FAR_NODE] = False
    cluster.processes[1].die()
    filled = hosts.pair.fill(hosts.pair.idle(None), Given(make_weights()))
    assert len(cluster.processes) == 2
    assert hosts.slab(FAR, 0).manifest is None
    assert hosts.pair.holds(filled.slab)
    hosts.transport.close()
    assert not directory(hosts.base / HERE).exists()
    assert directory(hosts.base / FAR).exists()


def test_a_host_that_goes_while_its_owner_is_replaced_is_forgotten(
    hosts: Hosts, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts.reach(FAR)
    cluster.processes[0].die()
    start = cluster._start

    def late() -> object:
        cluster.alive[FAR_NODE] = False
        return start()

    monkeypatch.setattr(cluster, "_start", late)
    filled = hosts.pair.fill(hosts.pair.idle(None), Given(make_weights()))
    assert hosts.pair.holds(filled.slab)
    assert hosts.slab(FAR, 0).manifest is None


def test_an_owner_that_cannot_be_replaced_fails_the_sync(hosts: Hosts, cluster: Cluster) -> None:
    hosts.reach(FAR)
    cluster.processes[0].die()
    cluster.placed = False
    with pytest.raises(SourceError, match="weights did not get to every host: Ray did not start the owner"):
        hosts.pair.fill(hosts.pair.idle(None), Given(make_weights()))
    with pytest.raises(SlabOwnerDeadError, match="Ray did not start the owner"):
        hosts.reach(FAR)
    cluster.placed = True
    assert hosts.reach(FAR) == directory(hosts.base / FAR)
    hosts.transport.close()
    assert not directory(hosts.base / FAR).exists()


def test_an_owner_whose_host_goes_at_the_end_stops_nobody(
    hosts: Hosts, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address in (FAR, HERE):
        hosts.reach(address)
    monkeypatch.setattr(hosts.handles[0], "_placed", lambda: (_ for _ in ()).throw(SlabOwnerDeadError("gone")))
    cluster.processes[0].die()
    hosts.transport.close()
    assert not directory(hosts.base / HERE).exists()


def test_what_was_damaged_before_it_left_is_not_sealed_there(hosts: Hosts) -> None:
    hosts.reach(FAR)
    slab = hosts.pair.at(hosts.pair.idle(None))
    entry = next(entry for entry in write(slab, make_weights()).entries if entry.name == "mixer.A_log")
    flip(slab.path, 8 * entry.offset)
    with pytest.raises(SourceError, match=r"mixer\.A_log arrived damaged"):
        hosts.transport.stage(slab)
    with pytest.raises(SlabError, match="not sealed"):
        hosts.slab(FAR, 0).sealed()


def test_an_answer_that_ray_lost_is_told_with_whose_it_was(
    hosts: Hosts, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts.reach(FAR)
    with pytest.raises(SlabOwnerDeadError, match=f"^the owner of run 'run''s slabs at {FAR}: Ray lost the answer to k"):
        hosts.handles[0].wait(RaySystemError("lost"), "keep")
    hosts.handles[0].address = ""
    with pytest.raises(SlabOwnerDeadError, match=r"^the owner of run 'run''s slabs: Ray lost the answer to keep"):
        hosts.handles[0].wait(RaySystemError("lost"), "keep")
