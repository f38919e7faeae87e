"""Wrong maps, engines of another kind and formats that no map can say are refused by name."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import nn

from omni_rl.errors import LayoutError
from omni_rl.sync.layout import LayoutMap, MapSeal
from omni_rl.sync.layout.blocks import Transform
from omni_rl.sync.released import TensorSpec
from tests.sync.toy_engine import (
    DTYPES,
    ToyEngine,
    derived,
    held,
    toy_weights,
    unequal,
    with_block,
)


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
