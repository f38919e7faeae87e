"""Weights to other hosts through Ray's object store, a piece at a time, into slabs of their own."""

from collections.abc import Sequence
from typing import Any

import ray

from omni_rl.errors import KeeperDeadError, SourceError
from omni_rl.sync.keepers import KeeperHandle
from omni_rl.sync.replica import SlabRef
from omni_rl.sync.slab import Slab
from omni_rl.sync.transport import Rollback

MESSAGE_BYTES = 2**26
"""Bytes of one message. Two are on their way at a time, so the store needs little room whatever the model's size."""
UNDER_WAY = 2


class ObjectStoreTransport:
    """Replicas on other hosts map slabs there; `keepers` own those, one a host other than the source's.

    A keeper that died is replaced, once a sync, and gets everything again.
    """

    def __init__(self, keepers: Sequence[KeeperHandle]) -> None:
        self._keepers = list(keepers)

    @property
    def rollback(self) -> Rollback:
        return "slab"

    @property
    def pushes(self) -> bool:
        return False

    def push(self) -> None:
        raise AssertionError("engines copy from the slab of their host")

    def stage(self, slab: Slab) -> None:
        try:
            self._send(slab)
        except KeeperDeadError:
            for keeper in self._keepers:
                _revive(keeper)
            try:
                self._send(slab)
            except KeeperDeadError as error:
                raise SourceError(f"weights did not get to every host: {error}") from error

    def holds(self, slab: SlabRef) -> bool:
        return all(keeper.holds(slab) for keeper in self._keepers)

    def _send(self, slab: Slab) -> None:
        manifest, path, keepers = slab.sealed(), str(slab.path), self._keepers
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
        keeper.replace()


def _wait(answers: Sequence[tuple[KeeperHandle, Any]]) -> None:
    for keeper, reference in answers:
        keeper.wait(reference)
