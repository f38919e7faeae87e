"""Runs a slab owner in a process of its own, on any host of a Ray cluster, and gives the driver a handle on it."""

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from omni_rl.closing import Closing
from omni_rl.errors import (
    ReplicaDeadError,
    ReplicaStoppedError,
    SlabBusyError,
    SlabError,
    SlabOwnerDeadError,
    SourceError,
)
from omni_rl.processes import PLACEMENT_TIMEOUT, SILENT_AFTER, ended
from omni_rl.sync.checksum import Checksum
from omni_rl.sync.manifest import Entry, Manifest
from omni_rl.sync.ownership import SHARED_MEMORY
from omni_rl.sync.replica import SlabRef
from omni_rl.sync.slab import Slab
from omni_rl.sync.slab_owner import SlabOwner
from omni_rl.sync.slabs import SlabPair
from omni_rl.sync.waiting import LOOK_EVERY, Waiter

CPUS = 0.01
"""Ray's share of a CPU for a slab owner, which only works while weights arrive from another host."""
HEALTH = "health"
"""The concurrency group of `alive`: a thread of its own, which answers while weights arrive."""
ENDING = "another one adopts its slabs"
ENDING_SECONDS = 10.0
"""The seconds that a process of another machine has to end after Ray was asked to kill it."""


class SlabOwnerActor:
    """The actor in the slab owner's process. `keep` must be called first."""

    def process(self) -> tuple[str, int]:
        """Return the node's address and the process id; answers as soon as Ray has placed the actor."""
        return ray.util.get_node_ip_address(), os.getpid()

    def keep(self, run: str, places: tuple[Entry, ...], base: Path) -> Path:
        self._slab_owner = SlabOwner(run, places, base)
        self._pair = SlabPair(self._slab_owner.directory)
        self._shares: dict[str, list[Checksum]] = {}
        return self._slab_owner.directory

    @ray.method(concurrency_group=HEALTH)  # type: ignore[untyped-decorator]
    def alive(self) -> None:
        """Answer if the process runs, whatever it is doing."""

    def begin(self, path: str) -> None:
        """Prepare for weights that are about to come; those that were arriving before are given up."""
        with contextlib.suppress(SlabError):  # it is gone, and made anew
            self._here(path).leave()
        slab = self._pair.restored(str(self._pair.directory / Path(path).name))
        slab.begin(self._pair.record.places)
        self._shares = {entry.name: [] for entry in self._pair.record.places}

    def receive(self, path: str, first: int, data: NDArray[np.uint8]) -> None:
        """Write bytes of a slab from byte `first` on."""
        slab = self._here(path)
        for entry in self._pair.record.places:
            start, stop = max(entry.offset, first), min(entry.offset + entry.nbytes, first + data.size)
            if start < stop:
                part = data[start - first : stop - first]
                self._shares[entry.name].append(slab.write_bytes(entry.name, part, start - entry.offset))

    def seal(self, path: str, manifest: Manifest) -> None:
        """Seal the slab, since everything has come. Raises `SourceError` for tensors that are not what was sent."""
        slab = self._here(path)
        damaged = [e.name for e in manifest.entries if str(Checksum.total(self._shares[e.name])) != e.checksum]
        if damaged:
            slab.leave()
            raise SourceError(f"{', '.join(damaged)} arrived damaged at {ray.util.get_node_ip_address()}; sync again")
        slab.seal(manifest)

    def holds(self, slab: SlabRef) -> bool:
        return self._pair.holds(SlabRef(str(self._pair.directory / Path(slab.path).name), slab.version))

    def close(self) -> None:
        self._pair.close()
        self._slab_owner.close()

    def _here(self, path: str) -> Slab:
        """Return this host's slab of the same name."""
        return self._pair.at(str(self._pair.directory / Path(path).name))


def node_at(address: str) -> str:
    """Return the id of the Ray node with that address. Raises `SlabOwnerDeadError` if there is none."""
    for node in ray.nodes():
        if node["Alive"] and node["NodeManagerAddress"] == address:
            found: str = node["NodeID"]
            return found
    raise SlabOwnerDeadError(f"Ray has no node at {address} for a slab owner")


class SlabOwnerHandle(Closing):
    """A handle on one slab owner. Make it with `start`; close it, or use it as a context, to remove the slabs of its
    host.

    If the owner's process dies, calls raise `SlabOwnerDeadError` until `replace` has started another, which adopts the
    slabs. `pid` is the process if it runs on this node, else None: one that answers no ping for `silent_after` seconds
    is taken for stopped.
    """

    def __init__(self, run: str, places: Sequence[Entry], base: Path, node: str | None) -> None:
        self._what = run, tuple(places), base
        self._node = node
        self._actor: Any = None
        self.address = ""
        self.pid: int | None = None
        self.silent_after = SILENT_AFTER

    @classmethod
    def start(
        cls, run: str, places: Sequence[Entry], *, base: Path = SHARED_MEMORY, node: str | None = None
    ) -> "SlabOwnerHandle":
        """Make, or adopt, the run's slabs on the Ray node with the id `node`, on any if None.

        Raises what `SlabOwner` raises, and `SlabOwnerDeadError` if Ray cannot start a process there.
        """
        handle = cls(run, places, base, node)
        handle.replace()
        return handle

    def replace(self) -> None:
        """End the process, if it still runs, and start another, which adopts the slabs."""
        deadline = time.monotonic() + (ENDING_SECONDS if self._actor is not None else 0.0)
        self._kill()
        pinned = {"scheduling_strategy": NodeAffinitySchedulingStrategy(self._node, soft=False)} if self._node else {}
        self._actor = (
            ray.remote(num_cpus=CPUS, max_restarts=0, concurrency_groups={HEALTH: 1})(SlabOwnerActor)
            .options(**pinned)
            .remote()
        )
        try:
            address, pid = self._placed()
            self.pid = pid if address == ray.util.get_node_ip_address() else None
            self.address = address
            self.directory = self._kept(deadline)
        except BaseException:
            self._kill()
            raise

    def _placed(self) -> tuple[str, int]:
        """Wait until Ray has started the process; return its node's address and its process id."""
        try:
            found: tuple[str, int] = ray.get(self._alive().process.remote(), timeout=PLACEMENT_TIMEOUT)
        except GetTimeoutError:
            raise SlabOwnerDeadError(
                f"Ray did not start the owner of run {self._what[0]!r}'s slabs within {PLACEMENT_TIMEOUT:g} s"
            ) from None
        except RayError as error:
            raise SlabOwnerDeadError(
                f"Ray cannot start the owner of run {self._what[0]!r}'s slabs: {error}; the slabs are still there"
            ) from error
        return found

    def _kept(self, deadline: float) -> Path:
        """Have the new process take the slabs over. The process before, where it is on another machine, holds them
        until it has ended, for which nobody here waited."""
        while True:
            try:
                directory: Path = self._call("keep", *self._what)
            except SlabBusyError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(LOOK_EVERY)
            else:
                return directory

    @property
    def has_host(self) -> bool:
        """Whether Ray still has the node that the slab owner is bound to."""
        return self._node is None or any(node["Alive"] and node["NodeID"] == self._node for node in ray.nodes())

    def ping(self) -> None:
        """Raise `SlabOwnerDeadError` if the process is gone, or stopped."""
        self._call("alive")

    def begin(self, path: str) -> None:
        self._call("begin", path)

    def receive(self, path: str, first: int, data: Any) -> Any:
        """Start to send bytes, given as a Ray reference; return the reference to `wait` for."""
        return self._alive().receive.remote(path, first, data)

    def seal(self, path: str, manifest: Manifest) -> None:
        self._call("seal", path, manifest)

    def holds(self, slab: SlabRef) -> bool:
        held: bool = self._call("holds", slab)
        return held

    def wait(self, reference: Any, what: str) -> Any:
        """Return the answer. Raises `SlabOwnerDeadError` if the process ended, or is stopped."""
        who = f"the owner of run {self._what[0]!r}'s slabs" + (f" at {self.address}" if self.address else "")
        waiter = Waiter(self._alive(), who, self.pid, ending=ENDING, silent_after=self.silent_after)
        try:
            return waiter.get(reference, what, None)
        except (ReplicaDeadError, ReplicaStoppedError) as error:
            raise SlabOwnerDeadError(f"{error}; its slabs are still there") from error

    def close(self) -> None:
        """Remove the slabs of its host and end the process; a dead slab owner is replaced for that. Idempotent."""
        if self._actor is None or not ray.is_initialized():
            return
        try:
            self._call("close")
        except SlabOwnerDeadError:
            self.replace()
            self._call("close")
        finally:
            self._kill()

    def _call(self, method: str, *arguments: Any) -> Any:
        return self.wait(getattr(self._alive(), method).remote(*arguments), method)

    def _alive(self) -> Any:
        if self._actor is None:
            raise SlabOwnerDeadError(f"the slab owner of run {self._what[0]!r} was closed; start another")
        return self._actor

    def _kill(self) -> None:
        if self._actor is not None:
            ray.kill(self._actor)
            if self.pid is not None:
                ended(self.pid)
        self._actor = self.pid = None
