"""Weights small enough to look at, of every dtype that is sent."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from omni_rl.sync.digest import shapes
from omni_rl.sync.manifest import Entry, Manifest, arrange, end
from omni_rl.sync.slab import Slab

from .by_hand import RunByHand

Weights = dict[str, torch.Tensor]
ROOT = Path(__file__).parents[2]
"""Where processes that a test starts find `tests`."""


def make_weights(seed: int = 0) -> Weights:
    """Odd sizes, a scalar, an empty tensor, integers, and rows of bfloat16 that do not end at a word."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "embeddings.weight": torch.randn(33, 7, generator=generator).bfloat16(),
        "mixer.A_log": torch.randn(5, generator=generator),
        "mixer.D": torch.randn(3, generator=generator).bfloat16(),
        "norm.eps": torch.randn((), generator=generator),
        "nothing": torch.empty(0, 4),
        "steps": torch.arange(9, dtype=torch.int64) * (seed + 1),
    }


def places(weights: Weights) -> tuple[Entry, ...]:
    return arrange(shapes(weights.items()))


def write(slab: Slab, weights: Weights, number: int = 0) -> Manifest:
    """Fill and seal, as a source in this process does."""
    with slab.writing(places(weights)):
        checksums = {name: str(slab.write(name, tensor)) for name, tensor in weights.items()}
        manifest = Manifest.seal(places(weights), checksums, run="run", attempt=1, number=number)
        slab.seal(manifest)
    return manifest


class Given:
    """A source of weights in this process."""

    def __init__(self, weights: Weights, number: int = 0) -> None:
        self.weights, self.number = weights, number

    def fill(self, slab: Slab) -> Manifest:
        return write(slab, self.weights, self.number)


def same(left: Weights, right: Weights) -> bool:
    """The same names, dtypes, shapes and bits."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def flip(path: Path, bit: int) -> None:
    """Flip bit `bit` of a file."""
    descriptor = os.open(path, os.O_RDWR)
    (byte,) = os.pread(descriptor, 1, bit // 8)
    os.pwrite(descriptor, bytes([byte ^ 1 << bit % 8]), bit // 8)
    os.close(descriptor)


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes: what a full file system does, at a place of our choice."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def weights() -> Weights:
    return make_weights()


@pytest.fixture
def slab(tmp_path: Path, weights: Weights) -> Iterator[Slab]:
    """A slab with room for `weights`."""
    made = Slab.create(tmp_path / "slab-0.weights", end(places(weights)))
    yield made
    made.close()


@pytest.fixture
def run() -> Iterator[RunByHand]:
    """A run whose replicas, journal and slabs are hand-made."""
    made = RunByHand()
    yield made
    made.sync.close()
