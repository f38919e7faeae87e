"""Lets PyPI's torchvision import beside a CPU build of torch.

Torchvision's compiled operators were built for CUDA and do not load, but its fake kernels need the schemas of two of
them to exist. transformers and vLLM import torchvision, so the rooms which import those call `install` first. A
torchvision from PyTorch's CPU index loads its operators itself; then nothing is defined here.
"""

import importlib.abc
import importlib.metadata
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


def install() -> None:
    """Have the schemas defined once somebody imports torchvision. Imports nothing itself, and may be called again."""
    if "torchvision" not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """A finder that finds nothing: Python asks it before torchvision is imported, and it removes itself then."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "torchvision":
            return None
        sys.meta_path.remove(self)
        if _builds_differ():
            _define_missing_schemas()
        return None


def _builds_differ() -> bool:
    try:
        torch, torchvision = (importlib.metadata.version(name) for name in ("torch", "torchvision"))
    except importlib.metadata.PackageNotFoundError:  # somebody asked whether there is one
        return False
    return "+cpu" in torch and "+cpu" not in torchvision


_library: object = None  # torch drops the schemas when the Library object is collected


def _define_missing_schemas() -> None:
    global _library
    import torch

    if hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _library = library
