"""Reads and writes safetensors files in parts: a reader takes only the bytes that it needs, and several processes fill
one file.

The safetensors library maps whole files, whose pages count as a reader's memory, and writes whole tensors only.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from omni_rl.errors import CheckpointError
from omni_rl.files.weights import open_weights
from omni_rl.sync.checkpoint import DTYPES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LENGTH_BYTES = 8
_ALIGNMENT = 8
_PIECE = 2**24
"""Bytes that are converted at a time, where file and tensor differ in dtype or device."""

Shapes = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""The dtype and the shape of each tensor, by name."""


@dataclass(frozen=True)
class TensorPlace:
    """Where a file holds a tensor of `dtype` and `shape`: from its byte `offset` on, in row-major order."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """The number of the tensor's bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_places(path: Path) -> dict[str, TensorPlace]:
    """Return where a safetensors file holds its tensors, by name. Raises `CheckpointError` for a file that is not
    safetensors or is damaged, and for a dtype that torch cannot compute with."""
    with open_weights(path, framework="np"):  # safetensors checks that header and file fit each other
        pass
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    if unknown := sorted({entry["dtype"] for entry in header.values()} - DTYPES.keys()):
        raise CheckpointError(
            f"{path} holds tensors of {', '.join(unknown)}; convert them to one of {', '.join(DTYPES)}"
        )
    return {
        name: TensorPlace(
            DTYPES[entry["dtype"]], tuple(entry["shape"]), _LENGTH_BYTES + length + entry["data_offsets"][0]
        )
        for name, entry in header.items()
    }


def arrange(tensors: Shapes) -> dict[str, TensorPlace]:
    """Return where a new file is to hold `tensors`, in safetensors' own order: the widest dtypes first, then by
    name."""
    header, places = _header(tensors), {}
    offset = len(header)
    for name, (dtype, shape) in _ordered(tensors):
        places[name] = TensorPlace(dtype, shape, offset)
        offset += places[name].size
    return places


def create(path: Path, tensors: Shapes) -> None:
    """Make a file of zeros with room for `tensors`, where `arrange` says. Raises `OSError`."""
    places = arrange(tensors)
    with path.open("xb") as file:
        file.write(_header(tensors))
        file.truncate(max((place.offset + place.size for place in places.values()), default=file.tell()))


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """Open a file with the `flags` of `os.open`; yield its descriptor, which is closed at the end. Raises `OSError`."""
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_into(descriptor: int, place: TensorPlace, start: int, out: torch.Tensor) -> None:
    """Fill `out`, which is contiguous, with the file's elements of a tensor from its element number `start` on,
    converted to `out`'s dtype and device.

    Raises `OSError`.
    """
    flat = out.detach().view(-1)
    offset = place.offset + start * place.dtype.itemsize
    if flat.dtype == place.dtype and flat.device.type == "cpu":
        _read(descriptor, offset, flat)
        return
    count = _PIECE // place.dtype.itemsize
    buffer = torch.empty(min(count, len(flat)), dtype=place.dtype)
    for piece in torch.split(flat, count):
        values = buffer[: len(piece)]
        _read(descriptor, offset, values)
        piece.copy_(values)
        offset += len(values) * place.dtype.itemsize


def write_from(descriptor: int, place: TensorPlace, start: int, values: torch.Tensor) -> None:
    """Write `values`, which are contiguous, into a tensor's place from its element number `start` on, converted to the
    file's dtype. Raises `OSError`."""
    offset = place.offset + start * place.dtype.itemsize
    for piece in torch.split(values.detach().view(-1), _PIECE // place.dtype.itemsize):
        content = _bytes(piece.to("cpu", place.dtype))
        while content:
            written = os.pwrite(descriptor, content, offset)
            content, offset = content[written:], offset + written


def pieces(descriptor: int, place: TensorPlace) -> Iterator[memoryview]:
    """Yield the tensor's bytes in order, in pieces of at most 16 MiB; use each before the next is taken, which
    overwrites it. Raises `OSError`."""
    buffer = torch.empty(min(_PIECE, place.size), dtype=torch.uint8)
    for offset in range(0, place.size, _PIECE):
        values = buffer[: min(_PIECE, place.size - offset)]
        _read(descriptor, place.offset + offset, values)
        yield values.numpy().data


def _read(descriptor: int, offset: int, out: torch.Tensor) -> None:
    content = _bytes(out)
    while content:
        taken = os.preadv(descriptor, [content], offset)
        if not taken:
            raise OSError("the file ends before its tensors do")
        content, offset = content[taken:], offset + taken


def _bytes(flat: torch.Tensor) -> memoryview:
    return flat.view(torch.uint8).numpy().data if len(flat) else memoryview(b"")


def _ordered(tensors: Shapes) -> list[tuple[str, tuple[torch.dtype, tuple[int, ...]]]]:
    return sorted(tensors.items(), key=lambda item: (-item[1][0].itemsize, item[0]))


def _header(tensors: Shapes) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, (dtype, shape) in _ordered(tensors):
        end = begin + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text
