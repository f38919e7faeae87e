"""Stores the layout map as a file: tables of integers and recorded values in safetensors, names in its metadata."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from blake3 import blake3
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from omni_rl.errors import LayoutError
from omni_rl.media.digests import tensors_digest
from omni_rl.sync.layout.blocks import StridedBlock, Transform
from omni_rl.sync.layout.kinds import Kind
from omni_rl.sync.layout.map import LayoutMap
from omni_rl.sync.layout.recorded import Recorded
from omni_rl.sync.layout.storages import StorageSpec
from omni_rl.sync.released import TensorSpec

FORMAT = 2


def write(layout: LayoutMap, path: Path) -> None:
    """Write `layout` to `path`: the whole file or none of it, also when other processes write it at the same time."""
    head = {
        "format": FORMAT,
        "specs": [[name, _text(spec.dtype), list(spec.shape)] for name, spec in layout.specs.items()],
        "storages": [[s.name, list(s.aliases), _text(s.dtype), s.elements, s.persistent] for s in layout.storages],
        "recorded": [[one.storage, one.kind.value, one.start] for one in layout.recorded],
    }
    tensors = {f"values.{index}": one.values for index, one in enumerate(layout.recorded)}
    tensors["blocks"] = torch.tensor(layout.blocks, dtype=torch.int64).reshape(-1, len(StridedBlock._fields))
    text = json.dumps(head)
    metadata = {"layout": text, "digest": _digest(text, tensors)}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        save_file(tensors, unfinished, metadata=metadata)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read(path: Path) -> LayoutMap:
    """Read the layout map at `path`. Raises `LayoutError` unless it is a complete map of this format, as it was
    written.

    The digest in the file matters: a changed entry between tensors that are equal in a checkpoint (norms, all ones)
    would explain an engine that has just loaded it, and would later confirm what the engine wrote in the wrong place.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            head = json.loads(metadata.get("layout", "{}"))
            if head.get("format") != FORMAT:
                raise LayoutError(f"{path} is no layout map of format {FORMAT}; delete it, it will be made again")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise LayoutError(
            f"{path} cannot be read as a layout map: {error}; delete it, it will be made again"
        ) from error
    if _digest(metadata["layout"], tensors) != metadata.get("digest"):
        raise LayoutError(f"{path} was changed since it was written; delete it, it will be made again")
    table = tensors["blocks"].tolist()
    values = [tensors[f"values.{index}"] for index in range(len(head["recorded"]))]
    layout = LayoutMap(
        specs={name: TensorSpec(_dtype(dtype), tuple(shape)) for name, dtype, shape in head["specs"]},
        storages=tuple(
            StorageSpec(name, tuple(aliases), _dtype(dtype), elements, persistent)
            for name, aliases, dtype, elements, persistent in head["storages"]
        ),
        blocks=tuple(StridedBlock._make([*row[:2], Transform(row[2]), *row[3:]]) for row in table),
        recorded=tuple(
            Recorded(storage, Kind(kind), start, held)
            for (storage, kind, start), held in zip(head["recorded"], values, strict=True)
        ),
    )
    layout.check_complete()
    return layout


def _digest(head: str, tensors: Mapping[str, torch.Tensor]) -> str:
    return blake3(f"{tensors_digest(tensors)} {head}".encode()).hexdigest()


def _text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(text: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, text)
    return dtype
