"""The layout map of vLLM's Nemotron Omni: complete, equal to vLLM's own load, and blind to no parameter."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from omni_rl.checkpoints.build import random_checkpoint
from omni_rl.errors import LayoutError
from omni_rl.sync.digest import checksums
from omni_rl.sync.layout import Kind, LayoutMap, Mismatch, prepare
from tests.released import all_as_sent
from tests.sync.toy_engine import held, unequal

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

DTYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
Weights = dict[str, torch.Tensor]


class Served:
    """One engine's model, its weights as sent, and vLLM's loader."""

    def __init__(self, checkpoint: Path, dtype: str, maps: Path) -> None:
        from omni_rl.rollout import startup
        from omni_rl.rollout.settings import EngineSettings

        self.engine = startup.start(EngineSettings(model=checkpoint, dtype=dtype))  # type: ignore[arg-type]
        self.model: nn.Module = startup.model_runner(self.engine).model
        self.weights = all_as_sent(load_file(checkpoint / "model.safetensors"), getattr(torch, dtype))
        self.started = held(self.model)
        self.layout = prepare(self.model, self.weights, self.load, {}, maps)

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            self.model.load_weights(iter(tensors.items()))  # type: ignore[operator]

    def wrong(self, weights: Weights) -> tuple[Mismatch, ...]:
        """By comparing, and by checksums, which must agree."""
        wrong = self.layout.verify(weights, self.model)
        assert self.layout.prove(weights, checksums(weights), self.model) == wrong
        return wrong

    def close(self) -> None:
        self.engine.engine_core.shutdown()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Path, str], Served]]:
    served: list[Served] = []

    def begin(checkpoint: Path, dtype: str) -> Served:
        served.append(Served(checkpoint, dtype, tmp_path / "maps"))
        return served[-1]

    yield begin
    for one in served:
        one.close()


def moved(weights: Weights, seed: int) -> Weights:
    """Other weights: every floating value changed."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (tensor.float() * (1.5 + torch.rand(tensor.shape, generator=generator)) + 0.01).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor + seed
        for name, tensor in weights.items()
    }


def distinct(model: nn.Module) -> dict[str, torch.Tensor]:
    """One tensor per storage: counted here by address, independently of the map."""
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        found.setdefault(tensor.data_ptr(), (name, tensor.detach()))
    return dict(found.values())


@pytest.mark.parametrize(
    ("pattern", "dtype"),
    [(None, "float32"), (None, "bfloat16"), ("M-*E", "bfloat16"), ("EE*", "float32"), ("MM", "bfloat16")],
)
def test_every_element_of_the_engine_is_covered_and_loads_are_reproduced(
    pattern: str | None, dtype: str, serve: Callable[[Path, str], Served], small_checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint = small_checkpoint if pattern is None else random_checkpoint(tmp_path / "model", 3, pattern)
    served = serve(checkpoint, dtype)
    assert not unequal(held(served.model), served.started), "preparing left the engine changed"

    coverage = served.layout.coverage()
    storages = distinct(served.model)
    kinds = (coverage.released, coverage.transformed, coverage.constant, coverage.derived, coverage.padding)
    assert sum(kinds) == coverage.total == sum(tensor.numel() for tensor in storages.values())
    sent = sum(tensor.numel() for tensor in served.weights.values())
    mambas = (pattern or "M*EM-ME").count("M")
    assert coverage.released + coverage.transformed == sent
    assert coverage.transformed == mambas * 8  # heads
    assert coverage.padding == 2 * (832 - 780) * 128  # embedding and head, up to a multiple of 64
    assert coverage.derived == 32  # the sound encoder's inverse frequencies

    new = moved(served.weights, 1)
    served.load(new)
    loaded = held(served.model)
    served.layout.apply(served.weights, served.model)
    assert not unequal(held(served.model), served.started)
    served.layout.apply(new, served.model)
    assert not unequal(held(served.model), loaded)
    assert served.wrong(new) == ()
    # Nothing that should have moved stood still: what is left is constant, derived or padding.
    still = set(held(served.model)) - set(unequal(held(served.model), served.started))
    recorded = {served.layout.storages[one.storage].name for one in served.layout.recorded if one.kind != Kind.PADDING}
    assert still == recorded


@DTYPES
def test_a_flipped_bit_in_any_parameter_or_buffer_is_named(
    dtype: str, serve: Callable[[Path, str], Served], small_checkpoint: Path
) -> None:
    served = serve(small_checkpoint, dtype)
    storages = distinct(served.model)
    assert len(storages) > 150
    generator = torch.Generator().manual_seed(0)
    for name, tensor in storages.items():
        raw = tensor.view(-1).view(torch.uint8)
        byte, bit = (int(torch.randint(n, (), generator=generator)) for n in (raw.numel(), 8))
        raw[byte] ^= 1 << bit
        (found,) = served.wrong(served.weights)
        assert (found.parameter, found.index, found.elements) == (name, byte // tensor.element_size(), 1)
        raw[byte] ^= 1 << bit
    assert served.wrong(served.weights) == ()


def test_a_skipped_tensor_and_a_swapped_pair_are_named(
    serve: Callable[[Path, str], Served], small_checkpoint: Path
) -> None:
    served = serve(small_checkpoint, "bfloat16")
    new = moved(served.weights, 1)
    for name, tensor in new.items():
        served.load(new | {name: served.weights[name]})
        assert {found.tensor for found in served.wrong(new)} == {name}
        flat = tensor.clone().view(-1)
        others = (flat != flat[0]).nonzero()
        if len(others):
            other = int(others[len(others) // 2])
            flat[[0, other]] = flat[[other, 0]]
            served.load(new | {name: flat.view(tensor.shape)})
            found = served.wrong(new)
            assert {one.tensor for one in found} == {name}
            assert sum(one.elements for one in found) == 2


def test_a_wrong_entry_anywhere_in_the_map_is_refused_by_a_fresh_load(
    serve: Callable[[Path, str], Served], small_checkpoint: Path
) -> None:
    served = serve(small_checkpoint, "bfloat16")
    layout, shapes = served.layout, list(served.layout.specs.values())
    wrong: list[LayoutMap] = []
    for block in layout.blocks[:: len(layout.blocks) // 40]:
        peer = next((i for i, spec in enumerate(shapes) if spec == shapes[block.tensor] and i != block.tensor), None)
        changed: dict[str, Any] = {"tensor": peer} if peer is not None else {"source": block.source + 1}
        blocks = [other._replace(**changed) if other is block else other for other in layout.blocks]
        wrong.append(replace(layout, blocks=tuple(blocks)))
    assert len(wrong) >= 40
    for candidate in wrong:
        with pytest.raises(LayoutError, match="layout map"):
            candidate.check_fresh(served.model, served.load)
    layout.check_fresh(served.model, served.load)
