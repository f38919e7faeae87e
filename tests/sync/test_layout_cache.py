"""An engine's map is derived once, kept in a file, and made again where the file is damaged."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from omni_rl.errors import LayoutError
from omni_rl.sync.layout import file, prepare
from omni_rl.sync.layout.blocks import StridedBlock, Transform
from tests.sync.toy_engine import (
    ROWS,
    ToyEngine,
    derived,
    found_in,
    held,
    toy_weights,
    unequal,
    with_block,
)


def test_a_map_comes_back_from_its_file(tmp_path: Path) -> None:
    model, layout = derived(torch.bfloat16)
    file.write(layout, tmp_path / "map.safetensors")
    again = file.read(tmp_path / "map.safetensors")
    assert (again.specs, again.storages, again.blocks) == (layout.specs, layout.storages, layout.blocks)
    assert all(type(block) is StridedBlock and type(block.transform) is Transform for block in again.blocks)
    weights = toy_weights(torch.bfloat16, 1)
    again.apply(weights, model)
    assert found_in(model, again, weights) == found_in(model, layout, weights) == ()
    assert [file.name for file in tmp_path.iterdir()] == ["map.safetensors"]


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "incomplete"])
def test_a_file_that_is_no_map_is_refused(damage: str, tmp_path: Path) -> None:
    _, layout = derived()
    path = tmp_path / "map.safetensors"
    file.write(layout, path)
    whole = path.read_bytes()
    if damage == "incomplete":
        file.write(replace(layout, blocks=layout.blocks[1:]), path)
    else:
        path.write_bytes(
            {"cut": whole[: len(whole) // 2], "empty": b"", "other": whole.replace(b"format", b"former")}[damage]
        )
    with pytest.raises(LayoutError, match=r"map\.safetensors|layout map"):
        file.read(path)
    with pytest.raises(LayoutError, match="cannot be read"):
        file.read(tmp_path / "none.safetensors")


class Loads:
    """A loader that counts how often it was asked."""

    def __init__(self, model: ToyEngine) -> None:
        self.model, self.times = model, 0

    def __call__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.times += 1
        self.model.load(tensors)


def started(seed: int = 1) -> tuple[ToyEngine, dict[str, torch.Tensor]]:
    model, weights = ToyEngine(torch.float32), toy_weights(torch.float32, seed)
    model.load(weights)
    return model, weights


def test_a_map_is_derived_once_and_leaves_the_engine_as_it_started(tmp_path: Path) -> None:
    model, weights = started()
    before, load = held(model), Loads(model)
    first = prepare(model, weights, load, {"version": "1"}, tmp_path)
    assert load.times > 0
    assert not unequal(held(model), before)

    other, weights = started(seed=2)
    load = Loads(other)
    second = prepare(other, weights, load, {"version": "1"}, tmp_path)
    assert load.times == 0
    assert second.blocks == first.blocks
    prepare(other, weights, load, {"version": "2"}, tmp_path)
    assert load.times > 0
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["unreadable", "wrong"])
def test_a_bad_file_in_the_cache_is_made_again(damage: str, tmp_path: Path) -> None:
    model, weights = started()
    good = prepare(model, weights, model.load, {}, tmp_path)
    (path,) = tmp_path.iterdir()
    if damage == "unreadable":
        path.write_bytes(b"no map")
    else:
        index = next(i for i, block in enumerate(good.blocks) if list(good.specs)[block.tensor] == "q")
        file.write(with_block(good, index, tensor=list(good.specs).index("k")), path)
    again = prepare(model, weights, model.load, {}, tmp_path)
    assert again.blocks == file.read(path).blocks == good.blocks


def test_a_changed_file_in_the_cache_is_made_again_though_the_checkpoint_cannot_tell(tmp_path: Path) -> None:
    """Between tensors that are equal in the checkpoint (norms, all ones) a wrong entry shows only after training."""
    model, weights = started()
    weights["k"] = weights["q"].clone()
    model.load(weights)
    good = prepare(model, weights, model.load, {}, tmp_path)
    (path,) = tmp_path.iterdir()
    names = list(good.specs)
    with safe_open(path, framework="pt") as opened:
        metadata, stored = opened.metadata(), {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
    tensor = stored["blocks"][:, StridedBlock._fields.index("tensor")]
    of_q, of_k = (tensor == names.index(name) for name in ("q", "k"))
    tensor[of_q], tensor[of_k] = names.index("k"), names.index("q")
    save_file(stored, path, metadata=metadata)

    again = prepare(model, weights, model.load, {}, tmp_path)
    assert again.blocks == file.read(path).blocks == good.blocks


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    model, weights = started()
    before = held(model)
    layout = prepare(model, weights, model.load, {}, tmp_path / "file" / "maps")
    assert found_in(model, layout, weights) == ()
    assert not unequal(held(model), before)
    assert "OMNI_RL_CACHE" in caplog.text


def test_an_engine_whose_start_does_more_than_its_loader_is_refused(tmp_path: Path) -> None:
    """The engine after a full start is the reference, not its loader: vLLM's own reload misses this for Omni."""
    model, weights = started()
    model.qkv.data[:ROWS] *= 2  # as if the start had folded a scale into the queries
    with pytest.raises(LayoutError, match="qkv differ from the engine's own load"):
        prepare(model, weights, model.load, {}, tmp_path)
    assert not list(tmp_path.iterdir())
