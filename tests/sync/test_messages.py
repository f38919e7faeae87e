"""How weights are cut into messages for other hosts: many bytes in few of them, and little room in the store."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from omni_rl.sync import object_store
from omni_rl.sync.object_store import ObjectStoreTransport

SIZE = 2**29 + 3


class Far:
    """The owner of another host's slabs, which has room for anything and looks at nothing."""

    has_host, directory = True, Path("/far/omni-rl-run")

    def __init__(self) -> None:
        self.did: list[str] = []
        self.starts: list[int] = []
        self.waited: list[int] = []

    def begin(self, path: str) -> None:
        self.did.append("begin")

    def receive(self, path: str, first: int, data: int) -> int:
        self.did.append("receive")
        self.starts.append(first)
        return data

    def wait(self, reference: int, what: str) -> None:
        self.did.append("wait")
        self.waited.append(reference)

    def seal(self, path: str, manifest: object) -> None:
        self.did.append("seal")

    def ping(self) -> None:
        self.did.append("ping")


def test_a_large_model_is_sent_in_a_few_messages_of_which_two_fit_in_a_small_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []

    def put(data: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> int:
        sizes.append(data.nbytes)
        return len(sizes)

    monkeypatch.setattr(object_store, "ray", SimpleNamespace(put=put))
    far = Far()
    transport = ObjectStoreTransport(lambda address: far)  # type: ignore[arg-type, return-value]
    empty = SimpleNamespace(paths=(), at=None)
    assert transport.reach("far", empty) == far.directory  # type: ignore[arg-type]
    transport.reach("far", empty)  # type: ignore[arg-type]
    assert far.did == ["ping"]
    slab = SimpleNamespace(path=Path("slab-0"), sealed=lambda: None, content=lambda: np.zeros(SIZE, np.uint8))
    transport.stage(slab)  # type: ignore[arg-type]
    assert sum(sizes) == SIZE
    assert far.starts == [0, *np.cumsum(sizes)[:-1].tolist()]
    assert 1 < len(sizes) < 100
    assert 2 * max(sizes) < 2**29
    assert (far.did[1], far.did[-1]) == ("begin", "seal")
    assert far.did.count("wait") == far.did.count("receive") == len(sizes)
    assert far.waited == list(range(1, len(sizes) + 1)), "the oldest first, whose bytes the store then drops"
    assert far.did[2:5] == ["receive", "receive", "wait"]
