"""A checkpoint directory as it would be sent: every dtype that safetensors stores, one tensor at a time."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from omni_rl.errors import CheckpointError, SlabFullError
from omni_rl.sync.checkpoint import CheckpointTensors
from omni_rl.sync.manifest import Manifest
from omni_rl.sync.released import ReleasedFormat
from omni_rl.sync.slab import Slab
from omni_rl.sync.sources import DirectorySource, FsdpSource

from .conftest import Weights, files_end_at, places, same, write

FORMAT = ReleasedFormat(derived=(re.compile(r"rotary\..*"),), float32=(".A_log", ".D"))
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


def stored(path: Path, tensors: Weights) -> Path:
    path.mkdir(exist_ok=True)
    save_file(tensors, path / "model.safetensors")
    return path


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=str)
def test_every_dtype_that_is_synced_may_be_stored(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.tensor([[1, 0, 1], [0, 1, 1]]).to(dtype)
    sent = tensor.to(torch.float16) if dtype in FLOATS else tensor
    tensors = CheckpointTensors(stored(tmp_path / "model", {"w": tensor}), torch.float16, FORMAT)
    assert tensors.places() == places({"w": sent})
    assert same(dict(tensors), {"w": sent})


def test_a_dtype_that_is_not_synced_is_refused_by_its_tensors_name(tmp_path: Path) -> None:
    path = stored(tmp_path / "model", {"a": torch.ones(2), "b": torch.ones(2).to(torch.float8_e4m3fn)})
    tensors = CheckpointTensors(path, torch.float32, FORMAT)
    with pytest.raises(CheckpointError, match="b is stored as F8_E4M3, which is not synced; convert it"):
        tensors.places()


def test_what_both_sides_make_themselves_is_not_sent(tmp_path: Path) -> None:
    saved = {"rotary.inv_freq": torch.ones(3), "rotary_scale": torch.ones(2), "mixer.A_log": torch.ones(4)}
    saved["mixer.D.weight"] = torch.ones(1)
    tensors = CheckpointTensors(stored(tmp_path / "model", saved), torch.bfloat16, FORMAT)
    assert len(tensors) == 3
    assert sorted(tensors) == ["mixer.A_log", "mixer.D.weight", "rotary_scale"]
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        "mixer.A_log": torch.float32,
        "mixer.D.weight": torch.bfloat16,
        "rotary_scale": torch.bfloat16,
    }
    assert [entry.dtype for entry in tensors.places()] == ["float32", "bfloat16", "bfloat16"]


def test_a_save_into_the_directory_changes_nothing_of_what_was_opened(tmp_path: Path) -> None:
    path = stored(tmp_path / "model", {"w": torch.zeros(3)})
    tensors = CheckpointTensors(path, torch.float32, FORMAT)
    save_file({"w": torch.ones(3)}, tmp_path / "new")
    (tmp_path / "new").replace(path / "model.safetensors")
    assert same(dict(tensors), {"w": torch.zeros(3)})


def test_a_directory_is_named_as_it_was_asked_for(tmp_path: Path, slab: Slab) -> None:
    path = stored(tmp_path / "model", {"w": torch.tensor([1.0, float("nan"), float("inf")])})
    plain = DirectorySource(path, torch.float32, FORMAT, run="run").fill(slab)
    assert (plain.version.run, plain.version.attempt, plain.version.number) == ("run", 1, 0)
    assert plain.origin == "directory"
    first = DirectorySource(path, torch.float32, FORMAT, run="r", attempt=3, number=8, origin="checkpoint").fill(slab)
    assert (first.version.run, first.version.attempt, first.version.number) == ("r", 3, 8)
    assert first.origin == "checkpoint"
    assert slab.sealed() == first
    assert [str(found) for found in first.nonfinite or ()] == ["w: 1 NaN and 1 infinite of 3 elements"]


class Training:
    """A training copy that fills the slab that it is told to with the claim that it gets."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.claims: list[str | None] = []

    def fill(self, path: Path, claim: str | None = None) -> Manifest:
        self.claims.append(claim)
        slab = Slab.open(path)
        slab.begin(places(self.weights), claim)
        slab.leave()
        return write(slab, self.weights)


def test_our_trainer_gets_a_claim_of_its_own_each_time(slab: Slab, weights: Weights) -> None:
    training = Training(weights)
    source = FsdpSource(training)
    assert source.fill(slab) == source.fill(slab) == slab.sealed()
    assert same(slab.tensors(), weights)
    assert None not in training.claims
    assert len(set(training.claims)) == 2


def test_no_room_for_a_claim_is_told_before_the_trainer_is_asked(slab: Slab, weights: Weights) -> None:
    training = Training(weights)
    with (
        files_end_at(0),
        pytest.raises(SlabFullError, match=r"slab-0\.claim cannot be written: .*; free some room there"),
    ):
        FsdpSource(training).fill(slab)
    assert training.claims == []
