"""The layout map of a small model: complete, exact, and not to be fooled."""

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from omni_rl.sync.digest import checksums
from omni_rl.sync.layout import Coverage, Kind, LayoutMap
from omni_rl.sync.layout.blocks import StridedBlock, Transform
from omni_rl.sync.released import TensorSpec
from tests.sync.toy_engine import (
    DTYPES,
    HEADS,
    PADDED,
    ROWS,
    VOCABULARY,
    WIDTH,
    derived,
    found_in,
    held,
    toy_specs,
    toy_weights,
    unequal,
)


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
