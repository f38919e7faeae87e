"""A cluster of one process: Ray's part of it is played by hand, the slab owners on its hosts are real."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError, RayTaskError

from omni_rl.sync import object_store, presence, slab_owner_actor, waiting
from omni_rl.sync.slab_owner_actor import SlabOwnerActor

HERE, FAR = "10.0.0.1", "10.0.0.2"
NEAR_NODE, FAR_NODE = "01" * 28, "02" * 28


class Process:
    """The process of one actor. `host` is its node's address; `died`: it is gone, with what it had locked."""

    def __init__(self, cluster: "Cluster", node: str, pid: int) -> None:
        self.cluster, self.node, self.pid = cluster, node, pid
        self.actor = SlabOwnerActor()
        self.died = False
        self.called: list[str] = []

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: self._call(method, arguments))

    def _call(self, method: str, arguments: Sequence[Any]) -> Any:
        """What Ray would keep of the call: its answer, or its error. It is made at once."""
        self.called.append(method)
        if self.died:
            return ActorDiedError()
        if method == "process":
            return self.cluster.nodes_by_id[self.node], self.pid
        try:
            return [getattr(self.actor, method)(*arguments)]
        except Exception as error:
            return RayTaskError(method, "a traceback", error)

    def die(self) -> None:
        """End; the kernel closes what it had open."""
        if not self.died:
            self.died = True
            with contextlib.suppress(AttributeError):  # it owned nothing yet
                self.actor._slab_owner.close(remove=False)


class Cluster:
    """What `ray` is to the modules under test. `placed` False: it finds no room for another process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nodes_by_id = {NEAR_NODE: HERE, FAR_NODE: FAR}
        self.alive = {NEAR_NODE: True, FAR_NODE: True}
        self.placed = True
        self.processes: list[Process] = []
        self.options: list[dict[str, Any]] = []
        self.ended: list[int] = []
        self.messages: list[int] = []
        self.initialized = True
        self.util = SimpleNamespace(get_node_ip_address=lambda: HERE)
        for module in (object_store, presence, slab_owner_actor, waiting):
            monkeypatch.setattr(module, "ray", self)
        monkeypatch.setattr(slab_owner_actor, "ended", self.ended.append)

    def is_initialized(self) -> bool:
        return self.initialized

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {"NodeID": node, "NodeManagerAddress": address, "Alive": self.alive[node]}
            for node, address in self.nodes_by_id.items()
        ]

    def remote(self, **options: Any) -> Any:
        self.options.append(options)
        return lambda cls: SimpleNamespace(options=self._pinned)

    def _pinned(self, **options: Any) -> Any:
        self.options[-1] |= options
        return SimpleNamespace(remote=self._start)

    def _start(self) -> Process:
        pinned = self.options[-1].get("scheduling_strategy")
        process = Process(self, pinned.node_id if pinned else NEAR_NODE, 100 + len(self.processes))
        process.died = not self.alive[process.node]
        self.processes.append(process)
        return process

    def kill(self, process: Process) -> None:
        process.die()

    def put(self, data: Any) -> Any:
        self.messages.append(data.nbytes)
        return data.copy()

    def wait(self, references: Sequence[Any], timeout: float) -> tuple[Sequence[Any], Sequence[Any]]:
        return references, []

    def get(self, reference: Any, timeout: float | None = None) -> Any:
        if timeout is not None and not self.placed:
            raise GetTimeoutError("no room")
        if isinstance(reference, Exception):
            raise reference
        return reference[0] if isinstance(reference, list) else reference


def directory(base: Path, run: str = "run") -> Path:
    return base / f"omni-rl-{run}"
