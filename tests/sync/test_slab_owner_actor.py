"""What the owner of another host's slabs makes of the bytes that reach it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from omni_rl.errors import SlabError, SourceError
from omni_rl.sync.manifest import Manifest, end
from omni_rl.sync.replica import SlabRef
from omni_rl.sync.slab import Slab
from omni_rl.sync.slab_owner_actor import SlabOwnerActor

from .conftest import Weights, make_weights, places, same, write

Bytes = NDArray[np.uint8]
SENT = "/elsewhere/omni-rl-run/slab-0.weights"
"""The slab's path on the host that sends it."""
PART = 50
"""So many bytes at once end within elements and within tensors."""


@pytest.fixture
def owner(tmp_path: Path, weights: Weights) -> Iterator[SlabOwnerActor]:
    made = SlabOwnerActor()
    made.keep("run", places(weights), tmp_path / "here")
    yield made
    made.close()


def sent(place: Path, weights: Weights, number: int = 0) -> tuple[Bytes, Manifest]:
    """The bytes of a slab with `weights`, and what is said of them."""
    path = place / f"sent-{number}.weights"
    slab = Slab.create(path, end(places(weights)))
    manifest = write(slab, weights, number)
    slab.close()
    return np.fromfile(path, np.uint8), manifest


def receive(owner: SlabOwnerActor, data: Bytes) -> None:
    owner.begin(SENT)
    for first in range(0, data.size, PART):
        owner.receive(SENT, first, data[first : first + PART])


def test_bytes_in_parts_are_the_weights_that_were_sent(tmp_path: Path, owner: SlabOwnerActor, weights: Weights) -> None:
    data, manifest = sent(tmp_path, weights)
    receive(owner, data)
    owner.seal(SENT, manifest)
    here = tmp_path / "here" / "omni-rl-run" / "slab-0.weights"
    assert same(Slab.open(here).tensors(), weights)
    assert owner.holds(SlabRef(SENT, str(manifest.version)))
    assert not owner.holds(SlabRef(SENT, "run/1/0/0123456789abcdef"))


def test_a_byte_that_changed_on_the_way_is_told_by_its_tensor_and_holds_nothing(
    tmp_path: Path, owner: SlabOwnerActor, weights: Weights
) -> None:
    data, manifest = sent(tmp_path, weights)
    damaged = data.copy()
    entry = next(entry for entry in manifest.entries if entry.name == "mixer.A_log")
    damaged[entry.offset + 1] ^= 1
    receive(owner, damaged)
    with pytest.raises(SourceError, match=r"^mixer\.A_log arrived damaged .*sync again"):
        owner.seal(SENT, manifest)
    assert not owner.holds(SlabRef(SENT, str(manifest.version)))
    receive(owner, data)
    owner.seal(SENT, manifest)
    assert owner.holds(SlabRef(SENT, str(manifest.version)))


def test_what_is_missing_is_damaged(tmp_path: Path, owner: SlabOwnerActor, weights: Weights) -> None:
    data, manifest = sent(tmp_path, weights)
    receive(owner, data[: manifest.entries[-1].offset])
    with pytest.raises(SourceError, match=f"^{manifest.entries[-1].name} arrived damaged"):
        owner.seal(SENT, manifest)


def test_weights_that_come_again_take_the_place_of_those_before(tmp_path: Path, owner: SlabOwnerActor) -> None:
    """The sender died halfway; its next attempt is whole."""
    first, _ = sent(tmp_path, make_weights(1), 1)
    owner.begin(SENT)
    owner.receive(SENT, 0, first[:PART])
    data, manifest = sent(tmp_path, make_weights(2), 2)
    receive(owner, data)
    owner.seal(SENT, manifest)
    assert owner.holds(SlabRef(SENT, str(manifest.version)))


def test_only_the_runs_slabs_are_written(owner: SlabOwnerActor) -> None:
    with pytest.raises(SlabError, match="no slab of run 'run'"):
        owner.receive("/elsewhere/omni-rl-run/slab-2.weights", 0, np.zeros(PART, np.uint8))
