"""The layout map of a small model: complete, exact, and not to be fooled."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from omni_rl.errors import LayoutError
from omni_rl.sync.digest import checksums
from omni_rl.sync.layout import Coverage, Kind, LayoutMap, MapSeal, Mismatch, file, prepare
from omni_rl.sync.layout.blocks import StridedBlock, Transform
from omni_rl.sync.released import TensorSpec
from tests.sync.toy_engine import (
    HEADS,
    PADDED,
    ROWS,
    VOCABULARY,
    WIDTH,
    ToyEngine,
    held,
    toy_specs,
    toy_weights,
    unequal,
)

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def derived(dtype: torch.dtype = torch.float32) -> tuple[ToyEngine, LayoutMap]:
    model = ToyEngine(dtype)
    return model, LayoutMap.derive(model, toy_specs(dtype), model.load)


def found_in(model: ToyEngine, layout: LayoutMap, weights: Mapping[str, torch.Tensor]) -> tuple[Mismatch, ...]:
    """What is wrong with an engine that was given `weights`: by comparing, and by checksums, which must agree."""
    wrong = layout.verify(weights, model)
    assert layout.prove(weights, checksums(weights), model) == wrong
    return wrong


def with_block(layout: LayoutMap, index: int, **changes: Any) -> LayoutMap:
    blocks = list(layout.blocks)
    blocks[index] = blocks[index]._replace(**changes)
    return replace(layout, blocks=tuple(blocks))


@DTYPES
def test_every_element_is_exactly_one_thing(dtype: torch.dtype) -> None:
    model, layout = derived(dtype)
    layout.check_complete()
    padding = (PADDED - VOCABULARY) * WIDTH
    # Half of `wide` lands twice, so the engine holds more released elements than were sent.
    released = 3 * ROWS * WIDTH + VOCABULARY * WIDTH + ROWS * WIDTH // 2 + WIDTH * ROWS + 4 * ROWS * WIDTH + 1
    expected = Coverage(released, HEADS, WIDTH + 1, 4, padding, released + HEADS + WIDTH + 1 + 4 + padding)
    assert layout.coverage() == expected
    storages = {tensor.untyped_storage().data_ptr(): tensor.numel() for _, tensor in model.state_dict().items()}
    assert expected.total == sum(storages.values()) + model.frequencies.numel()
    (alias,) = [spec for spec in layout.storages if spec.aliases]
    assert (alias.name, alias.aliases) == ("left", ("view",))


class PaddedInFront(nn.Module):
    """Padding before the first element of the first released tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(PADDED, WIDTH))

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            self.embedding[:-VOCABULARY].fill_(0)
            self.embedding[-VOCABULARY:].copy_(tensors["embedding"])


def test_padding_before_the_first_released_element_ends_where_that_begins() -> None:
    model = PaddedInFront()
    layout = LayoutMap.derive(model, {"embedding": TensorSpec(torch.float32, (VOCABULARY, WIDTH))}, model.load)
    padding, released = (PADDED - VOCABULARY) * WIDTH, VOCABULARY * WIDTH
    assert layout.blocks == (StridedBlock(0, 0, Transform.COPY, 1, released, 0, 0, padding, 0),)
    assert layout.coverage() == Coverage(released, 0, 0, 0, padding, released + padding)


@DTYPES
def test_applying_equals_loading_bit_for_bit(dtype: torch.dtype) -> None:
    model, layout = derived(dtype)
    layout.check_fresh(model, model.load)
    weights = toy_weights(dtype, 1)
    model.load(weights)
    loaded = held(model)
    layout.apply(toy_weights(dtype, 2), model)
    assert len(unequal(held(model), loaded)) >= 8
    layout.apply(weights, model)
    assert not unequal(held(model), loaded)
    assert found_in(model, layout, weights) == ()


def test_bits_that_no_comparison_of_numbers_would_see_are_seen() -> None:
    model, layout = derived()
    weights = toy_weights(torch.float32, 1)
    weights["q"][0, 0], weights["q"][0, 1] = torch.nan, 0.0
    layout.apply(weights, model)
    assert found_in(model, layout, weights) == ()
    with torch.no_grad():
        model.qkv[0, 1] = -0.0
    (found,) = found_in(model, layout, weights)
    assert (found.tensor, found.parameter, found.kind, found.index, found.elements) == ("q", "qkv", Kind.RELEASED, 1, 1)


@given(st.data())
@settings(deadline=None)  # times on a shared machine say nothing
def test_one_flipped_bit_anywhere_is_found_and_named(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    model, layout = derived(dtype)
    weights = toy_weights(dtype, 1)
    layout.apply(weights, model)
    name = data.draw(
        st.sampled_from([name for name, _ in model.named_parameters()] + [n for n, _ in model.named_buffers()])
    )
    tensor = {**dict(model.named_parameters()), **dict(model.named_buffers())}[name].detach()
    raw = tensor.view(-1).view(torch.uint8)
    byte, bit = data.draw(st.integers(0, raw.numel() - 1)), data.draw(st.integers(0, 7))
    raw[byte] ^= 1 << bit
    (found,) = found_in(model, layout, weights)
    assert found.parameter == name.replace("view", "left")
    assert (found.index, found.elements) == (byte // tensor.element_size(), 1)
    raw[byte] ^= 1 << bit
    assert found_in(model, layout, weights) == ()


@pytest.mark.parametrize("name", list(toy_specs(torch.float32)))
def test_a_tensor_that_was_skipped_is_named(name: str) -> None:
    model, layout = derived()
    old, new = toy_weights(torch.float32, 1), toy_weights(torch.float32, 2)
    layout.apply(old, model)
    model.load({other: tensor for other, tensor in new.items() if other != name})
    assert {found.tensor for found in found_in(model, layout, new)} == {name}


@pytest.mark.parametrize("name", [name for name, spec in toy_specs(torch.float32).items() if spec.shape])
def test_two_values_that_changed_places_are_named(name: str) -> None:
    model, layout = derived()
    weights = toy_weights(torch.float32, 1)
    swapped = {other: tensor.clone() for other, tensor in weights.items()}
    flat = swapped[name].view(-1)
    flat[[0, 2]] = flat[[2, 0]]
    model.load(swapped)
    found = found_in(model, layout, weights)
    assert {one.tensor for one in found} == {name}
    changed = {
        one.parameter: sum(other.elements for other in found if other.parameter == one.parameter) for one in found
    }
    assert set(changed.values()) == {2}


@pytest.mark.parametrize(("name", "kind"), [("layer_scale", Kind.CONSTANT), ("frequencies", Kind.DERIVED)])
def test_a_changed_constant_is_named_and_not_healed_by_applying(name: str, kind: Kind) -> None:
    model, layout = derived()
    weights = toy_weights(torch.float32, 1)
    layout.apply(weights, model)
    getattr(model, name).data[2] += 1e-6
    layout.apply(weights, model)
    (found,) = found_in(model, layout, weights)
    assert (found.tensor, found.parameter, found.kind, found.index) == (None, name, kind, 2)
    assert name in str(found)


def test_changed_padding_is_named() -> None:
    model, layout = derived()
    weights = toy_weights(torch.float32, 1)
    layout.apply(weights, model)
    model.embedding.data[-1, -1] = 1.0
    (found,) = found_in(model, layout, weights)
    assert (found.parameter, found.kind, found.index) == ("embedding", Kind.PADDING, PADDED * WIDTH - 1)


def test_a_slab_that_was_damaged_before_the_engine_got_it_is_named() -> None:
    model, layout = derived()
    sent = toy_weights(torch.float32, 1)
    for name in ("q", "gate", "wide", "a_log"):
        damaged = {other: tensor.clone() for other, tensor in sent.items()}
        damaged[name].view(-1).view(torch.int32)[1] ^= 1
        layout.apply(damaged, model)
        assert layout.verify(damaged, model) == ()
        wrong = layout.prove(damaged, checksums(sent), model)
        assert {(one.tensor, one.index) for one in wrong} == {(name, None)}
        assert all("checksum" in str(one) and name in str(one) for one in wrong)


class Sliced(nn.Module):
    """Both halves of every row of what is released, in rows long enough for checksums of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.empty(5, 1500))
        self.right = nn.Parameter(torch.empty(5, 1501))

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            self.left.copy_(tensors["both"][:, :1500])
            self.right.copy_(tensors["both"][:, 1500:])


def test_rows_in_several_places_add_up_to_one_checksum() -> None:
    model = Sliced()
    layout = LayoutMap.derive(model, {"both": TensorSpec(torch.float32, (5, 3001))}, model.load)
    layout.check_fresh(model, model.load)
    weights = {"both": torch.randn(5, 3001)}
    model.load(weights)
    # What the engine holds is enough: the slab is not even read.
    assert layout.prove({"both": torch.zeros(5, 3001)}, checksums(weights), model) == ()
    model.right.data[3, 7] += 1
    (wrong,) = layout.prove(weights, checksums(weights), model)
    assert (wrong.tensor, wrong.parameter, wrong.index, wrong.elements) == ("both", "right", 3 * 1501 + 7, 1)


def every_wrong_entry(layout: LayoutMap) -> list[LayoutMap]:
    """One map for each way in which one block can say the wrong thing and still fit."""
    wrong = []
    for index, block in enumerate(layout.blocks):
        name = list(layout.specs)[block.tensor]
        shape = layout.specs[name].shape
        if torch.Size(shape).numel() > block.elements:
            wrong.append(with_block(layout, index, source=block.source + 1))
        peers = [i for i, spec in enumerate(layout.specs.values()) if spec.shape == shape and i != block.tensor]
        wrong += [with_block(layout, index, tensor=peer) for peer in peers[:1]]
        if block.rows > 1:
            wrong.append(with_block(layout, index, source_stride=block.source_stride - 1))
            wrong.append(with_block(layout, index, rows=block.rows - 1))
        if block.transform is Transform.NEGATIVE_EXPONENTIAL:
            wrong.append(with_block(layout, index, transform=Transform.COPY))
    dropped = [replace(layout, blocks=layout.blocks[:i] + layout.blocks[i + 1 :]) for i in range(len(layout.blocks))]
    return wrong + dropped + [replace(layout, recorded=layout.recorded[1:])]


@DTYPES
def test_a_wrong_map_cannot_vouch_for_itself(dtype: torch.dtype) -> None:
    model, layout = derived(dtype)
    candidates = every_wrong_entry(layout)
    assert len(candidates) > 20
    for wrong in candidates:
        with pytest.raises(LayoutError, match="layout map"):
            wrong.check_fresh(model, model.load)
    layout.check_fresh(model, model.load)


def test_every_entry_of_a_map_that_changed_after_it_was_confirmed_is_named() -> None:
    _, layout = derived()
    seal = MapSeal(layout)
    assert seal.broken(layout) == ()
    for index, block in enumerate(layout.blocks):
        moved = with_block(layout, index, target=block.target + 1)
        (name,) = seal.broken(moved)
        assert name == list(layout.specs)[block.tensor]
    for recorded in layout.recorded:
        others = tuple(one for one in layout.recorded if one is not recorded)
        assert layout.storages[recorded.storage].name in seal.broken(replace(layout, recorded=others))


def test_tensors_and_engines_that_are_not_the_maps_are_refused_before_anything_is_written() -> None:
    model, layout = derived()
    weights = toy_weights(torch.float32, 1)
    layout.apply(weights, model)
    before = held(model)
    new = toy_weights(torch.float32, 2)
    for sent, message in [
        ({name: tensor for name, tensor in new.items() if name != "q"}, "missing or unexpected.*: q;"),
        (new | {"extra": torch.zeros(1)}, "missing or unexpected.*: extra;"),
        (new | {"k": new["k"].bfloat16()}, r"k is torch.bfloat16 \[6, 8\], not torch.float32"),
        (new | {"k": new["k"].t()}, r"k is torch.float32 \[8, 6\], not"),
    ]:
        with pytest.raises(LayoutError, match=message):
            layout.apply(sent, model)
        with pytest.raises(LayoutError, match=message):
            layout.verify(sent, model)
    assert not unequal(held(model), before)

    model.view = model.view.clone()  # no longer the same storage: what reads it would keep the old weights
    for check in (layout.apply, layout.verify):
        with pytest.raises(LayoutError, match="shares their storage"):
            check(new, model)
    with pytest.raises(LayoutError, match="not the one that the layout map was made for"):
        layout.verify(new, ToyEngine(torch.bfloat16))


class Refused(nn.Module):
    """One parameter `weight`, loaded from `weight` by `rule`."""

    def __init__(self, weight: torch.Tensor, rule: Callable[[torch.Tensor], torch.Tensor] = lambda sent: sent) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self._rule = rule

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.weight.copy_(self._rule(tensors["weight"]))


SHUFFLED = torch.randperm(128 * 128, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("model", "sent", "message"),
    [
        (Refused(torch.zeros(4, dtype=torch.float8_e4m3fn)), torch.float32, "weight has no provable layout: .*float8"),
        (Refused(torch.zeros(4, dtype=torch.int8)), torch.float32, "weight has no provable layout: .*int8: quantised"),
        (Refused(torch.zeros(0)), torch.float32, "weight has no provable layout: it is empty"),
        (Refused(torch.zeros(4, device="meta")), torch.float32, "weight has no provable layout: it has no storage"),
        (Refused(torch.zeros(4), lambda sent: sent * 0.3), torch.float32, "weight holds values that no released"),
        (Refused(torch.zeros(4), torch.square), torch.float32, "weight holds values that no released"),
        (
            Refused(torch.zeros(4), lambda sent: sent[:1].expand(4)),
            torch.float32,
            r"reach.*: weight \(3 of 4 elements\)",
        ),
        (Refused(torch.zeros(4), torch.zeros_like), torch.float32, r"reach.*: weight \(4 of 4 elements\)"),
        (Refused(torch.zeros(4, dtype=torch.bfloat16)), torch.float32, "weight .*bfloat16.* would be rounded"),
        (
            Refused(torch.zeros(128 * 128), lambda sent: sent[SHUFFLED]),
            torch.float32,
            "weight is filled in .* shuffled",
        ),
    ],
)
def test_formats_that_blocks_cannot_say_are_refused_by_name(model: Refused, sent: torch.dtype, message: str) -> None:
    elements = max(model.weight.numel(), 4)
    with pytest.raises(LayoutError, match=message):
        LayoutMap.derive(model, {"weight": TensorSpec(sent, (elements,))}, model.load)


def test_one_storage_in_two_dtypes_is_refused() -> None:
    model = Refused(torch.zeros(4))
    model.register_buffer("raw", model.weight.data.view(torch.int32))
    with pytest.raises(LayoutError, match=r"raw .*int32.* storage of weight"):
        LayoutMap.derive(model, {"weight": TensorSpec(torch.float32, (4,))}, model.load)


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
    """What vLLM's own reload misses for Omni: the engine after a full start is the reference, not its loader."""
    model, weights = started()
    model.qkv.data[:ROWS] *= 2  # as if the start had folded a scale into the queries
    with pytest.raises(LayoutError, match="qkv differ from the engine's own load"):
        prepare(model, weights, model.load, {}, tmp_path)
    assert not list(tmp_path.iterdir())
