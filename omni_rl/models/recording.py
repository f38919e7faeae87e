"""Takes the outputs of a model's modules during a forward, under names that engine and trainer share.

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
LAST_NORM = "norm"
"""The shared name of the last norm, whose output rows the LM head multiplies."""
LOGITS = "logits"
"""The shared name of the logits, which come last; both sides have them for the answer's tokens alone."""


class ModuleSide(NamedTuple):
    """What is taken of a module: its input or its output, and under which shared name. `module` is that name; it may
    refer to groups of the pattern that found the module, as `layers.\\1.mixer`."""

    module: str
    side: Side = "output"


def places(model: nn.Module, patterns: Mapping[str, ModuleSide]) -> dict[str, tuple[nn.Module, Side]]:
    """Return the modules whose names `patterns` (regular expressions) match in full, with the side to take of each, by
    shared name."""
    found = {}
    for own, module in model.named_modules():
        for pattern, place in patterns.items():
            if (match := re.fullmatch(pattern, own)) is not None:
                found[match.expand(place.module)] = (module, place.side)
    return found


@contextmanager
def recording(where: Mapping[str, tuple[nn.Module, Side]]) -> Iterator[Callable[[], dict[str, NDArray[np.float32]]]]:
    """Record the forwards inside the block. The function that the block gets returns what was taken by shared name, in
    the order of the forward: float32 [N, W] for each module.

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
