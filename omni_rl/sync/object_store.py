"""Weights to other hosts through Ray's object store, a piece at a time, into slabs of their own."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray

from omni_rl.errors import KeeperDeadError, SourceError
from omni_rl.sync.keepers import KeeperHandle
from omni_rl.sync.replica import SlabRef
from omni_rl.sync.slab import Slab
from omni_rl.sync.slabs import SlabPair
from omni_rl.sync.transport import Rollback

T = TypeVar("T")
MESSAGE_BYTES = 2**26
"""Bytes of one message. Two are on their way at a time, so the store needs little room whatever the model's size."""
UNDER_WAY = 2


class ObjectStoreTransport:
    """Replicas on other hosts map slabs there; `start` makes the keeper of those at an address other than the source's.

    A keeper that died is replaced, once a sync, and gets everything again. One whose host is gone is forgotten: nobody
    is left there to take weights.
    """

    def __init__(self, start: Callable[[str], KeeperHandle]) -> None:
        self._start = start
        self._keepers: dict[str, KeeperHandle] = {}
        self._reaching = threading.Lock()

    @property
    def rollback(self) -> Rollback:
        return "slab"

    @property
    def pushes(self) -> bool:
        return False

    def push(self) -> None:
        raise AssertionError("engines copy from the slab of their host")

    def reach(self, address: str, pair: SlabPair) -> Path:
        """Where the host at `address` has its slabs. What it lacks of what `pair` has sealed is sent; nobody may be
        filling a slab meanwhile.

        Raises `KeeperDeadError` if no keeper can run there, `SlabError` if there is no room.
        """
        with self._reaching:
            self._forget_lost()
            if address in self._keepers:
                _revive(self._keepers[address])
            else:
                self._keepers[address] = self._start(address)
            keeper = self._keepers[address]
            for path in map(str, pair.paths):
                slab = pair.at(path)
                manifest = slab.manifest
                if manifest is not None and not keeper.holds(SlabRef(path, str(manifest.version))):
                    _send(slab, [keeper])
            return keeper.directory

    def stage(self, slab: Slab) -> None:
        try:
            self._with_all(lambda keepers: _send(slab, keepers))
        except KeeperDeadError as error:
            raise SourceError(f"weights did not get to every host: {error}") from error

    def holds(self, slab: SlabRef) -> bool:
        return self._with_all(lambda keepers: all(keeper.holds(slab) for keeper in keepers))

    def close(self) -> None:
        """Remove the slabs of all hosts that are still there."""
        self._forget_lost()
        for keeper in self._keepers.values():
            with contextlib.suppress(KeeperDeadError):  # its host went just now, and its memory with it
                keeper.close()

    def _with_all(self, call: Callable[[Sequence[KeeperHandle]], T]) -> T:
        self._forget_lost()
        try:
            return call(list(self._keepers.values()))
        except KeeperDeadError:
            for keeper in self._keepers.values():
                _revive(keeper)
            self._forget_lost()
            return call(list(self._keepers.values()))

    def _forget_lost(self) -> None:
        self._keepers = {address: keeper for address, keeper in self._keepers.items() if keeper.has_host}


def _send(slab: Slab, keepers: Iterable[KeeperHandle]) -> None:
    manifest, path = slab.sealed(), str(slab.path)
    for keeper in keepers:
        keeper.begin(path)
    under_way: list[list[tuple[KeeperHandle, Any]]] = []
    content = slab.content()
    for first in range(0, content.size, MESSAGE_BYTES):
        data = ray.put(content[first : first + MESSAGE_BYTES])
        under_way.append([(keeper, keeper.receive(path, first, data)) for keeper in keepers])
        if len(under_way) == UNDER_WAY:
            _wait(under_way.pop(0))
    while under_way:
        _wait(under_way.pop(0))
    for keeper in keepers:
        keeper.seal(path, manifest)


def _revive(keeper: KeeperHandle) -> None:
    try:
        keeper.ping()
    except KeeperDeadError:
        # It takes Ray a while to notice that a node is gone; until then it waits for room there.
        try:
            keeper.replace()
        except KeeperDeadError:
            if keeper.has_host:
                raise


def _wait(answers: Sequence[tuple[KeeperHandle, Any]]) -> None:
    for keeper, reference in answers:
        keeper.wait(reference)
