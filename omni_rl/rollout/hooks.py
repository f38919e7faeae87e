"""Takes the outputs of a model's modules during a forward, under names that both sides share; see `train.hooks`.

Shapes: N rows of a module's output, W its width.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Side = Literal["input", "output"]
LOGITS = "logits"
"""The last place: of the answer's tokens alone, on both sides."""


class Place(NamedTuple):
    """A module by its own name, and which of its sides is taken."""

    module: str
    side: Side = "output"


# By a pattern of the engine's names; \1 is the layer's number.
PLACES: Mapping[str, Place] = {
    r"vision_model\.model\.patch_generator\.embedder": Place("vision.patches", "input"),
    r"vision_model\.model\.patch_generator\.video_embedder": Place("vision.video_patches", "input"),
    # A block itself runs no hooks: vLLM's decorator for compilation calls its `forward`.
    r"vision_model\.model\.encoder\.layers\.(\d+)\.attn": Place(r"vision.layers.\1.attention"),
    r"vision_model\.model\.encoder\.layers\.(\d+)\.mlp": Place(r"vision.layers.\1.mlp"),
    r"mlp1": Place("vision_projector"),
    r"sound_encoder\.encoder\.subsampling": Place("sound.subsampling"),
    r"sound_encoder\.encoder\.subsampling\.layers\.0": Place("sound.features", "input"),
    r"sound_encoder\.encoder\.layers\.(\d+)": Place(r"sound.layers.\1"),
    r"sound_encoder\.projection": Place("sound_projection"),
    r"language_model\.model\.layers\.0": Place("embeddings", "input"),
    r"language_model\.model\.layers\.(\d+)\.norm": Place(r"layers.\1.norm"),
    r"language_model\.model\.layers\.(\d+)\.mixer": Place(r"layers.\1.mixer"),
    r"language_model\.model\.norm_f": Place("norm"),
    r"language_model\.logits_processor": Place(LOGITS),
}


def places(model: nn.Module, patterns: Mapping[str, Place]) -> dict[str, tuple[nn.Module, Side]]:
    """Shared name to module and side."""
    found = {}
    for own, module in model.named_modules():
        for pattern, place in patterns.items():
            if (match := re.fullmatch(pattern, own)) is not None:
                found[match.expand(place.module)] = (module, place.side)
    return found


@contextmanager
def recording(where: Mapping[str, tuple[nn.Module, Side]]) -> Iterator[Callable[[], dict[str, NDArray[np.float32]]]]:
    """Record inside the block; what it gives returns, by name in the order of the forward, all rows [N, W].

    A module that runs several times, chunk by chunk or picture by picture, has the rows of all its runs.
    """
    taken: dict[str, list[torch.Tensor]] = {}

    def take(name: str, value: Any) -> None:
        tensor = next(part for part in _flat(value) if isinstance(part, torch.Tensor) and part.is_floating_point())
        taken.setdefault(name, []).append(tensor.detach().float().reshape(-1, tensor.shape[-1]).clone())

    with ExitStack() as stack:
        for name, (module, side) in where.items():
            stack.callback(_hook(module, side, name, take).remove)
        yield lambda: {name: torch.cat(rows).cpu().numpy() for name, rows in taken.items()}


def _hook(module: nn.Module, side: Side, name: str, take: Callable[[str, Any], None]) -> Any:
    if side == "output":
        return module.register_forward_hook(lambda _, given, found: take(name, found))
    return module.register_forward_pre_hook(
        lambda _, given, named: take(name, (*given, *named.values())), with_kwargs=True
    )


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list):
        for part in value:
            yield from _flat(part)
    else:
        yield value
