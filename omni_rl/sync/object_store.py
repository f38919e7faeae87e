"""Sends weights to other hosts through Ray's object store, a piece at a time, into slabs of their own."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray

from omni_rl.errors import SlabOwnerDeadError, SourceError
from omni_rl.sync.replica import SlabRef
from omni_rl.sync.slab import Slab
from omni_rl.sync.slab_owner_actor import SlabOwnerHandle
from omni_rl.sync.slabs import SlabPair
from omni_rl.sync.transport import SlabTransport

T = TypeVar("T")
MESSAGE_BYTES = 2**26
"""The bytes of one message. Two are on their way at a time, so the store needs little room whatever the model's
size."""
UNDER_WAY = 2


class ObjectStoreTransport(SlabTransport):
    """Brings weights to replicas on other hosts, which map slabs there; `start` makes the slab owner at an address that
    is not the source's.

    A slab owner that died is replaced, once a sync, and receives everything again. One whose host is gone is forgotten:
    no replica is left there to take weights.
    """

    def __init__(self, start: Callable[[str], SlabOwnerHandle]) -> None:
        self._start = start
        self._owners: dict[str, SlabOwnerHandle] = {}
        self._reaching = threading.Lock()

    def reach(self, address: str, pair: SlabPair) -> Path:
        """Return where the host at `address` has its slabs, after sending what it lacks of what `pair` has sealed.

        Nobody may be filling a slab meanwhile. Raises `SlabOwnerDeadError` if no slab owner can run there, `SlabError`
        if there is no room.
        """
        with self._reaching:
            self._forget_lost()
            if address in self._owners:
                _revive(self._owners[address])
            else:
                self._owners[address] = self._start(address)
            owner = self._owners[address]
            for path in map(str, pair.paths):
                slab = pair.at(path)
                manifest = slab.manifest
                if manifest is not None and not owner.holds(SlabRef(path, str(manifest.version))):
                    _send(slab, [owner])
            return owner.directory

    def stage(self, slab: Slab) -> None:
        try:
            self._with_all(lambda owners: _send(slab, owners))
        except SlabOwnerDeadError as error:
            raise SourceError(f"weights did not get to every host: {error}") from error

    def holds(self, slab: SlabRef) -> bool:
        return self._with_all(lambda owners: all(owner.holds(slab) for owner in owners))

    def close(self) -> None:
        """Remove the slabs of all hosts that are still in the cluster."""
        self._forget_lost()
        for owner in self._owners.values():
            with contextlib.suppress(SlabOwnerDeadError):  # its host went just now, and its memory with it
                owner.close()

    def _with_all(self, call: Callable[[Sequence[SlabOwnerHandle]], T]) -> T:
        self._forget_lost()
        try:
            return call(list(self._owners.values()))
        except SlabOwnerDeadError:
            for owner in self._owners.values():
                _revive(owner)
            self._forget_lost()
            return call(list(self._owners.values()))

    def _forget_lost(self) -> None:
        self._owners = {address: owner for address, owner in self._owners.items() if owner.has_host}


def _send(slab: Slab, owners: Iterable[SlabOwnerHandle]) -> None:
    manifest, path = slab.sealed(), str(slab.path)
    for owner in owners:
        owner.begin(path)
    under_way: list[list[tuple[SlabOwnerHandle, Any]]] = []
    content = slab.content()
    for first in range(0, content.size, MESSAGE_BYTES):
        data = ray.put(content[first : first + MESSAGE_BYTES])
        under_way.append([(owner, owner.receive(path, first, data)) for owner in owners])
        if len(under_way) == UNDER_WAY:
            _wait(under_way.pop(0))
    while under_way:
        _wait(under_way.pop(0))
    for owner in owners:
        owner.seal(path, manifest)


def _revive(owner: SlabOwnerHandle) -> None:
    try:
        owner.ping()
    except SlabOwnerDeadError:
        # Ray takes a while to notice that a node is gone; until then it waits for room there.
        try:
            owner.replace()
        except SlabOwnerDeadError:
            if owner.has_host:
                raise


def _wait(answers: Sequence[tuple[SlabOwnerHandle, Any]]) -> None:
    for owner, reference in answers:
        owner.wait(reference, "receive")
