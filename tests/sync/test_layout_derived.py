"""Maps of engines with loaders of every kind: where the limits of what is covered are, and what lies beyond."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import nn

from omni_rl.errors import LayoutError
from omni_rl.sync.digest import checksums
from omni_rl.sync.layout import Coverage, Kind, LayoutMap
from omni_rl.sync.layout.blocks import StridedBlock, Transform
from omni_rl.sync.layout.codes import CHUNK
from omni_rl.sync.layout.recorded import Recorded
from omni_rl.sync.released import TensorSpec

Weights = Mapping[str, torch.Tensor]
Rule = Callable[[Weights], torch.Tensor]


class Engine(nn.Module):
    """Parameters of these sizes, each loaded by its rule."""

    def __init__(self, *parameters: tuple[str, int, Rule], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self._rules: dict[str, Rule] = {}
        self.loaded: list[dict[str, torch.Tensor]] = []
        for name, size, rule in parameters:
            self.register_parameter(name, nn.Parameter(torch.zeros(size, dtype=dtype), requires_grad=False))
            self._rules[name] = rule

    def load(self, tensors: Weights) -> None:
        self.loaded.append({name: tensors[name].clone() for name in tensors})
        for name, rule in self._rules.items():
            self.get_parameter(name).copy_(rule(self.loaded[-1]))


def specs(dtype: torch.dtype = torch.float32, **sizes: int) -> dict[str, TensorSpec]:
    return {name: TensorSpec(dtype, (size,)) for name, size in sizes.items()}


def plain(name: str) -> Rule:
    return lambda sent: sent[name]


def block(length: int, source: int = 0, target: int = 0, storage: int = 0, tensor: int = 0) -> StridedBlock:
    return StridedBlock(storage, tensor, Transform.COPY, 1, length, source, 0, target, 0)


@pytest.mark.parametrize("size", [1, 255, 256, 257, CHUNK - 1, CHUNK, CHUNK + 1, 2**16, 2**16 + 1])
def test_a_tensor_of_any_size_is_one_block(size: int) -> None:
    engine = Engine(("weight", size, plain("a")))
    layout = LayoutMap.derive(engine, specs(a=size), engine.load)
    assert layout.blocks == (block(size),)
    assert layout.recorded == ()


@pytest.mark.parametrize(("pieces", "taken"), [(4096, True), (4097, False)])
def test_a_storage_in_too_many_pieces_is_shuffled(pieces: int, taken: bool) -> None:
    engine = Engine(("weight", pieces, lambda sent: sent["a"].flip(0)))  # torch has no negative strides
    if taken:
        assert len(LayoutMap.derive(engine, specs(a=pieces), engine.load).blocks) == pieces
    else:
        with pytest.raises(LayoutError, match="weight is filled in 4097 pieces: its format is shuffled"):
            LayoutMap.derive(engine, specs(a=pieces), engine.load)


@pytest.mark.parametrize("place", [0, 3, CHUNK - 1, CHUNK, CHUNK + 7])
def test_the_first_element_that_nothing_explains_is_named(place: int) -> None:
    def scaled(sent: Weights) -> torch.Tensor:
        values = sent["a"].clone()
        values[place:] *= 0.3
        return values

    engine = Engine(("weight", CHUNK + 9, scaled))
    told = f"engine parameter weight holds values that no released element explains, the first at element {place}:"
    with pytest.raises(LayoutError, match=told):
        LayoutMap.derive(engine, specs(a=CHUNK + 9), engine.load)


def test_an_element_that_only_later_digits_betray_is_named() -> None:
    """The engine holds a sum of two elements, whose lower digits are plain ones."""

    def summed(sent: Weights) -> torch.Tensor:
        values = sent["a"].clone()
        values[300] += sent["a"][256] * 0.1
        return values

    engine = Engine(("weight", 400, summed))
    with pytest.raises(LayoutError, match="weight holds values that no released element explains, the first at elem"):
        LayoutMap.derive(engine, specs(a=400), engine.load)


def test_elements_that_reach_no_engine_are_counted_by_tensor() -> None:
    engine = Engine(("weight", 3, lambda sent: sent["a"][:3]))
    with pytest.raises(LayoutError) as one:
        LayoutMap.derive(engine, specs(a=4), engine.load)
    assert str(one.value) == (
        "1 released tensor does not reach the engine, which would compute without them: a (1 of 4 elements)"
    )
    with pytest.raises(LayoutError) as two:
        LayoutMap.derive(engine, specs(a=4, b=1), engine.load)
    assert str(two.value) == (
        "2 released tensors do not reach the engine, which would compute without them: a (1 of 4 elements), "
        "b (1 of 1 element)"
    )


@pytest.mark.parametrize(
    ("sent", "served", "fits"),
    [
        (torch.float32, torch.float32, True),
        (torch.bfloat16, torch.float32, True),
        (torch.float16, torch.float32, True),
        (torch.float32, torch.float64, True),
        (torch.float32, torch.bfloat16, False),
        (torch.bfloat16, torch.float16, False),
        (torch.float64, torch.float32, False),
        (torch.int32, torch.int64, True),
        (torch.int64, torch.int32, False),
    ],
)
def test_a_parameter_holds_all_values_of_what_it_is_loaded_from(
    sent: torch.dtype, served: torch.dtype, fits: bool
) -> None:
    engine = Engine(("weight", 5, plain("a")), dtype=served)
    if fits:
        layout = LayoutMap.derive(engine, specs(sent, a=5), engine.load)
        weights = {"a": torch.tensor([1, 2, 3, 4, 5]).to(sent)}
        layout.apply(weights, engine)
        assert engine.get_parameter("weight").tolist() == [1, 2, 3, 4, 5]
        assert layout.verify(weights, engine) == layout.prove(weights, checksums(weights), engine) == ()
    else:
        told = rf"weight \({served}\) is loaded from a \({sent}\): sent values would be rounded"
        with pytest.raises(LayoutError, match=told):
            LayoutMap.derive(engine, specs(sent, a=5), engine.load)


def joined(sent: Weights) -> torch.Tensor:
    return torch.cat([sent["b"], sent["a"], torch.full((2,), 7.0)])


def two() -> tuple[Engine, LayoutMap]:
    """Two tensors in one parameter, with padding, and one of them in another too."""
    engine = Engine(("fused", 9, joined), ("alone", 4, plain("a")))
    return engine, LayoutMap.derive(engine, specs(a=4, b=3), engine.load)


def test_blocks_are_in_the_order_of_the_released_tensors() -> None:
    engine, layout = two()
    assert layout.blocks == (block(4, target=3), block(4, storage=1), block(3, tensor=1))
    assert [(one.storage, one.kind, one.start, one.values.tolist()) for one in layout.recorded] == [
        (0, Kind.PADDING, 7, [7.0, 7.0])
    ]
    assert layout.coverage() == Coverage(11, 0, 0, 0, 2, 13)
    layout.check_complete()
    layout.check_fresh(engine, engine.load)


def test_a_map_is_confirmed_by_two_loads_of_different_values() -> None:
    engine, layout = two()
    engine.loaded.clear()
    layout.check_fresh(engine, engine.load, seed=5)
    first, second = engine.loaded
    assert not torch.equal(first["a"], second["a"])
    layout.check_fresh(engine, engine.load, seed=6)
    assert torch.equal(engine.loaded[2]["a"], second["a"])


@pytest.mark.parametrize("wrong_at", [1, 2])
def test_either_load_refutes_a_wrong_map(wrong_at: int) -> None:
    engine, layout = two()
    loads = 0

    def load(tensors: Weights) -> None:
        nonlocal loads
        loads += 1
        engine.load(tensors)
        if loads == wrong_at:
            engine.get_parameter("alone")[1] += 1

    told = r"a fresh load differs from it: alone \(released as a\): 1 released element differs, the first is 1"
    with pytest.raises(LayoutError, match=told):
        layout.check_fresh(engine, load)
    assert loads == wrong_at


def test_a_map_that_is_not_complete_says_what_is_wrong_with_it() -> None:
    _, layout = two()
    first, *others = layout.blocks
    padding = layout.recorded[0]
    as_recorded = Recorded(0, Kind.PADDING, 0, torch.zeros(3))
    for changed, told in [
        (replace(layout, blocks=(first._replace(length=5), *others)), r"\(storage=0.*\) reaches beyond its tensor"),
        (replace(layout, blocks=(first._replace(target=6), *others)), "reaches beyond its tensor"),
        (replace(layout, blocks=(*layout.blocks, first)), "does not cover 4 elements of fused exactly once"),
        (replace(layout, blocks=tuple(others)), "does not cover 4 elements of fused exactly once"),
        (replace(layout, blocks=(first._replace(length=3), *others)), "does not cover 1 element of fused exactly once"),
        (replace(layout, recorded=()), "does not cover 2 elements of fused exactly once"),
        (replace(layout, recorded=(padding, padding)), "does not cover 2 elements of fused exactly once"),
        (
            replace(layout, blocks=layout.blocks[:2], recorded=(padding, as_recorded)),
            "leaves out elements of b$",
        ),
    ]:
        with pytest.raises(LayoutError, match=f"the layout map .*{told}"):
            changed.check_complete()


def test_each_place_of_a_tensor_is_told_with_its_elements() -> None:
    engine, layout = two()
    weights = {"a": torch.arange(4.0), "b": torch.arange(3.0) + 10}
    layout.apply({name: tensor.requires_grad_() for name, tensor in weights.items()}, engine)
    assert engine.get_parameter("fused").tolist()[:7] == [10, 11, 12, 0, 1, 2, 3]
    assert engine.get_parameter("alone").tolist() == [0, 1, 2, 3]
    engine.get_parameter("fused")[3:5] += 1
    engine.get_parameter("alone")[3] += 1
    engine.get_parameter("fused")[8] += 1
    expected = [
        "fused (released as a): 2 released elements differ, the first is 3",
        "alone (released as a): 1 released element differs, the first is 3",
        "fused: 1 padding element differs, the first is 8",
    ]
    detached = {name: tensor.detach() for name, tensor in weights.items()}
    for wrong in (layout.verify(weights, engine), layout.prove(weights, checksums(detached), engine)):
        assert [str(one) for one in wrong] == expected


def test_what_was_damaged_before_is_told_of_every_place_that_holds_it() -> None:
    engine, layout = two()
    sent = {"a": torch.arange(4.0), "b": torch.arange(3.0)}
    damaged = {"a": torch.arange(4.0) + 1, "b": torch.arange(3.0)}
    layout.apply(damaged, engine)
    wrong = layout.prove(damaged, checksums(sent), engine)
    assert [(one.tensor, one.parameter, one.index, one.elements) for one in wrong] == [
        ("a", "fused", None, 4),
        ("a", "alone", None, 4),
    ]


def test_an_engine_that_holds_neither_what_was_sent_nor_what_it_was_given_is_told_by_its_elements() -> None:
    engine, layout = two()
    sent = {"a": torch.arange(4.0), "b": torch.arange(3.0)}
    damaged = {"a": torch.arange(4.0) + 1, "b": torch.arange(3.0)}
    layout.apply(damaged, engine)
    engine.get_parameter("alone")[2] += 1
    wrong = layout.prove(damaged, checksums(sent), engine)
    assert [(one.tensor, one.parameter, one.index, one.elements) for one in wrong] == [("a", "alone", 2, 1)]


def test_what_is_not_in_this_machines_memory_is_left_to_torch_to_copy() -> None:
    """torch has nothing to copy on this device, and says so."""
    engine, layout = two()
    weights = {"a": torch.empty(4, device="meta"), "b": torch.empty(3, device="meta")}
    with pytest.raises(NotImplementedError, match="meta"):
        layout.apply(weights, engine)


def first_columns(width: int) -> Rule:
    """The first `width` of each row of three."""
    return lambda sent: sent["a"].view(3, -1)[:, :width].reshape(-1)


def test_long_rows_and_short_ones_are_copied_alike() -> None:
    """Rows of some thousand bytes have copies of their own."""
    for width in (1023, 1024, 1025):
        engine = Engine(
            ("left", 3 * width, first_columns(width)),
            ("right", 3, lambda sent: sent["a"].view(3, -1)[:, -1]),
        )
        layout = LayoutMap.derive(engine, specs(a=3 * width + 3), engine.load)
        weights = {"a": torch.randn(3 * width + 3, generator=torch.Generator().manual_seed(width))}
        layout.apply(weights, engine)
        assert torch.equal(engine.get_parameter("right"), weights["a"][width :: width + 1])
        assert layout.prove(weights, checksums(weights), engine) == ()
        engine.get_parameter("left")[-1] += 1
        (wrong,) = layout.prove(weights, checksums(weights), engine)
        assert (wrong.parameter, wrong.index, wrong.elements) == ("left", 3 * width - 1, 1)
