"""A keeper in a process of its own, on any host of a Ray cluster, and the driver's hold on it."""

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import ActorUnschedulableError, GetTimeoutError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from omni_rl.errors import KeeperDeadError, SourceError
from omni_rl.processes import PLACEMENT_TIMEOUT, wait_until_gone
from omni_rl.sync.checksum import Checksum
from omni_rl.sync.keeper import Keeper
from omni_rl.sync.manifest import Entry, Manifest
from omni_rl.sync.ownership import SHARED_MEMORY
from omni_rl.sync.replica import SlabRef
from omni_rl.sync.slab import Slab
from omni_rl.sync.slabs import SlabPair

CPUS = 0.01
"""Ray's share for a keeper, which only works while weights arrive from another host."""


class KeeperActor:
    """What runs in the keeper's process. `keep` comes first."""

    def process(self) -> tuple[str, int]:
        """Address of the node, and process id; answers as soon as Ray has placed the actor."""
        return ray.util.get_node_ip_address(), os.getpid()

    def keep(self, run: str, places: tuple[Entry, ...], base: Path) -> Path:
        self._keeper = Keeper(run, places, base)
        self._pair = SlabPair(self._keeper.directory)
        self._shares: dict[str, list[Checksum]] = {}
        return self._keeper.directory

    def ping(self) -> None:
        """Answers if the process lives."""

    def begin(self, path: str) -> None:
        """Weights are about to come; those that were coming before are given up."""
        slab = self._here(path)
        slab.leave()
        slab.begin(self._pair.record.places)
        self._shares = {entry.name: [] for entry in self._pair.record.places}

    def receive(self, path: str, first: int, data: NDArray[np.uint8]) -> None:
        """Bytes of a slab from byte `first` on."""
        slab = self._here(path)
        for entry in self._pair.record.places:
            start, stop = max(entry.offset, first), min(entry.offset + entry.nbytes, first + data.size)
            if start < stop:
                part = data[start - first : stop - first]
                self._shares[entry.name].append(slab.write_bytes(entry.name, part, start - entry.offset))

    def seal(self, path: str, manifest: Manifest) -> None:
        """Everything has come. Raises `SourceError` for tensors that are not what was sent."""
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
        self._keeper.close()

    def _here(self, path: str) -> Slab:
        """This host's slab of the same name."""
        return self._pair.at(str(self._pair.directory / Path(path).name))


def node_at(address: str) -> str:
    """Id of the Ray node with that address. Raises `KeeperDeadError` if there is none."""
    for node in ray.nodes():
        if node["Alive"] and node["NodeManagerAddress"] == address:
            found: str = node["NodeID"]
            return found
    raise KeeperDeadError(f"Ray has no node at {address} for a keeper")


class KeeperHandle:
    """One keeper. Make it with `start`; close it, or use it as a context, to remove the slabs of its host.

    If its process dies, calls raise `KeeperDeadError` until `replace` has started another, which adopts the slabs.
    `pid` is the process if it runs on this node, else None.
    """

    def __init__(self, run: str, places: Sequence[Entry], base: Path, node: str | None) -> None:
        self._what = run, tuple(places), base
        self._node = node
        self._actor: Any = None
        self.pid: int | None = None

    @classmethod
    def start(
        cls, run: str, places: Sequence[Entry], *, base: Path = SHARED_MEMORY, node: str | None = None
    ) -> "KeeperHandle":
        """Make, or adopt, the run's slabs on the Ray node with the id `node`, on any if None.

        Raises what `Keeper` raises, and `KeeperDeadError` if Ray cannot start a process there.
        """
        handle = cls(run, places, base, node)
        handle.replace()
        return handle

    def replace(self) -> None:
        """End the process, if it still runs, and start another, which adopts the slabs."""
        self._kill()
        pinned = {"scheduling_strategy": NodeAffinitySchedulingStrategy(self._node, soft=False)} if self._node else {}
        self._actor = ray.remote(num_cpus=CPUS, max_restarts=0)(KeeperActor).options(**pinned).remote()
        try:
            address, pid = self._call("process", timeout=PLACEMENT_TIMEOUT)
            self.pid = pid if address == ray.util.get_node_ip_address() else None
            self.address = address
            self.directory: Path = self._call("keep", *self._what)
        except BaseException:
            self._kill()
            raise

    @property
    def has_host(self) -> bool:
        """Whether Ray still has the node that it is bound to."""
        return self._node is None or any(node["Alive"] and node["NodeID"] == self._node for node in ray.nodes())

    def ping(self) -> None:
        """Raises `KeeperDeadError` if the process is gone."""
        self._call("ping")

    def begin(self, path: str) -> None:
        self._call("begin", path)

    def receive(self, path: str, first: int, data: Any) -> Any:
        """Start to send bytes, given as a Ray reference; returns the reference to `wait` for."""
        return self._alive().receive.remote(path, first, data)

    def seal(self, path: str, manifest: Manifest) -> None:
        self._call("seal", path, manifest)

    def holds(self, slab: SlabRef) -> bool:
        held: bool = self._call("holds", slab)
        return held

    def wait(self, reference: Any, timeout: float | None = None) -> Any:
        """The answer. Raises `KeeperDeadError` if the process ended, or did not answer within `timeout` seconds."""
        try:
            return ray.get(reference, timeout=timeout)
        except RayTaskError as error:
            raise error.cause from None
        except GetTimeoutError as error:
            raise KeeperDeadError(f"the keeper of run {self._what[0]!r} did not start within {timeout:g} s") from error
        except RayActorError as error:
            raise KeeperDeadError(
                f"the keeper of run {self._what[0]!r} died; its slabs are still there: replace it"
            ) from error
        except ActorUnschedulableError as error:
            raise KeeperDeadError(f"the keeper of run {self._what[0]!r} has lost its host: {error}") from error

    def close(self) -> None:
        """Remove the slabs of its host and end the process; a dead keeper is replaced for that. Idempotent."""
        if self._actor is None or not ray.is_initialized():
            return
        try:
            self._call("close")
        except KeeperDeadError:
            self.replace()
            self._call("close")
        finally:
            self._kill()

    def __enter__(self) -> "KeeperHandle":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: str, *arguments: Any, timeout: float | None = None) -> Any:
        return self.wait(getattr(self._alive(), method).remote(*arguments), timeout)

    def _alive(self) -> Any:
        if self._actor is None:
            raise KeeperDeadError(f"the keeper of run {self._what[0]!r} was closed; start another")
        return self._actor

    def _kill(self) -> None:
        if self._actor is not None:
            ray.kill(self._actor)
            wait_until_gone([] if self.pid is None else [self.pid])
        self._actor = self.pid = None
