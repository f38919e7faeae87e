"""Checkpoints of sharded models: each process reads and writes its own slices of the files, whatever the family.

No process ever holds more than its own shards and a few megabytes, but for a sharding that is not in rows.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from omni_rl.errors import CheckpointError, ConfigError
from omni_rl.files.companions import CONFIG
from omni_rl.files.weights import INDEX, WEIGHTS
from omni_rl.media.digests import combined_digest, pieces_digest
from omni_rl.models import tensor_file
from omni_rl.sync.group import ALONE, Group
from omni_rl.sync.parts import Shares, own_rows
from omni_rl.sync.released import Released, ReleasedFormat

SHARD_SIZE = 5 * 10**9
"""Bytes of a weight file, if nobody says otherwise; what most checkpoints on the hub have."""
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class Stored:
    """A released tensor, and the dtype that a file holds it in."""

    released: Released
    dtype: torch.dtype

    @classmethod
    def whole(cls, tensors: Mapping[str, torch.Tensor]) -> "list[Stored]":
        """Return plain tensors, each in its own dtype."""
        return [cls(Released(name, tensor), tensor.dtype) for name, tensor in tensors.items()]

    @classmethod
    def served(cls, tensors: Sequence[Released], form: ReleasedFormat, dtype: torch.dtype) -> "list[Stored]":
        """Return a model's weights, in the dtypes that an engine of `dtype` holds."""
        return [cls(each, form.sent_dtype(each.name, each.dtype, dtype)) for each in tensors]

    @property
    def size(self) -> int:
        """The tensor's bytes in the file."""
        return math.prod(self.released.shape) * self.dtype.itemsize


Files = Mapping[str, Sequence[Stored]]
"""The tensors of each file, by its name."""


def parse_size(size: int | str) -> int:
    """Return the bytes that a number, or a text like "5GB" with the decimal units of the hub, means. Raises
    `ConfigError`."""
    if isinstance(size, str):
        number, unit = size[:-2].strip(), size[-2:].upper()
        if unit not in _UNITS or not number.replace(".", "", 1).isdigit():
            raise ConfigError(f"max_shard_size is {size!r}; give bytes, or a text such as 5GB ({', '.join(_UNITS)})")
        size = int(float(number) * _UNITS[unit])
    if size <= 0:
        raise ConfigError(f"max_shard_size is {size}; it must be positive")
    return size


def weight_files(tensors: Sequence[Stored], limit: int) -> Files:
    """Return which file of at most `limit` bytes each tensor goes to, in order; a larger tensor has one of its own.

    One file has the plain name, several are numbered as transformers numbers them.
    """
    groups: list[list[Stored]] = [[]]
    size = 0
    for stored in tensors:
        if groups[-1] and size + stored.size > limit:
            groups.append([])
            size = 0
        groups[-1].append(stored)
        size += stored.size
    if len(groups) == 1:
        return {WEIGHTS: groups[0]}
    return {f"model-{n:05}-of-{len(groups):05}.safetensors": group for n, group in enumerate(groups, start=1)}


def write_index(directory: Path, files: Files) -> None:
    """Write the index that several weight files need. Raises `OSError`."""
    if len(files) > 1:
        placed = {stored.released.name: file for file, tensors in files.items() for stored in tensors}
        total = sum(stored.size for tensors in files.values() for stored in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def write(directory: Path, files: Files, group: Group = ALONE) -> None:
    """Write `files` below `directory`; all processes of `group` call this with the same ones.

    Each writes its own slices. Where a process does not see the directory, on another host without a common file
    system, the tensors are gathered one by one and the first process writes them all.

    Raises:
        CheckpointError: a file cannot be written, on a full disk for one; in all processes.
    """
    shapes = {
        file: {stored.released.name: (stored.dtype, stored.released.shape) for stored in tensors}
        for file, tensors in files.items()
    }

    def create() -> None:
        for file, own in shapes.items():
            with saying(file):
                tensor_file.create(directory / file, own)

    group.together(lambda: create() if group.first else None)
    seen = group.together(lambda: all((directory / file).is_file() for file in files))
    shares = Shares(first=group.first, gather=not all(seen))

    writes = all(seen) or group.first

    def fill() -> None:
        for file, tensors in files.items():
            places = tensor_file.arrange(shapes[file])
            # For writing alone: a client of NFS that has not read a page writes back no bytes of it but its own.
            with saying(file), tensor_file.opened(directory / file, os.O_WRONLY) if writes else nullcontext() as out:
                for stored in tensors:
                    start, share = shares.of(stored.released)
                    if out is not None:
                        tensor_file.write_from(out, places[stored.released.name], start, share.contiguous())
                if out is not None and not group.first:
                    os.fsync(out)  # whoever ends the directory does it on the first process's host

    group.together(fill)


def write_checkpoint(
    directory: Path,
    weights: Sequence[Stored],
    beside: Callable[[], None],
    shard_size: int = SHARD_SIZE,
    group: Group = ALONE,
) -> list[str]:
    """Write `weights` into files of at most `shard_size` bytes, and have `beside` write config.json and the rest.

    All processes of `group` call this with the same weights; the first calls `beside`. `directory` is empty: making it
    take a checkpoint's place is for the caller. Returns the names of the weight files. Raises `CheckpointError`.
    """
    files = weight_files(weights, shard_size)

    def first() -> None:
        with saying(CONFIG):
            beside()
            write_index(directory, files)

    group.together(lambda: first() if group.first else None)
    write(directory, files, group)
    return list(files)


@contextmanager
def group_directory(begin: Callable[[], AbstractContextManager[Path]], group: Group) -> Iterator[Path]:
    """Yield a directory that the first process of `group` begins and ends; an error in one process is raised in all."""
    with ExitStack() as stack:
        yield group.together(lambda: stack.enter_context(begin()) if group.first else Path())[0]
        group.together(stack.close)


def read(paths: Sequence[Path], tensors: Sequence[Released]) -> None:
    """Fill this process's part of every one of `tensors` from the files that hold them; other bytes are not read.

    Raises `CheckpointError` for a tensor that no file holds or that has another shape, before anything is read.
    """
    holder = {name: (path, place) for path in paths for name, place in tensor_file.read_places(path).items()}
    for wanted in tensors:
        if wanted.name not in holder:
            raise CheckpointError(f"no file holds {wanted.name}")
        if holder[wanted.name][1].shape != wanted.shape:
            raise CheckpointError(
                f"{wanted.name} is {list(holder[wanted.name][1].shape)} in its file, {list(wanted.shape)} here"
            )
    for path in paths:
        with tensor_file.opened(path, os.O_RDONLY) as descriptor:
            for wanted in tensors:
                source, place = holder[wanted.name]
                if source == path:
                    _read_into(descriptor, place, wanted)


def _read_into(descriptor: int, place: tensor_file.TensorPlace, wanted: Released) -> None:
    rows = own_rows(wanted)
    if rows is not None and rows[1].is_contiguous():
        tensor_file.read_into(descriptor, place, *rows)
        return
    whole = torch.empty(place.shape, dtype=place.dtype)
    tensor_file.read_into(descriptor, place, 0, whole)
    if rows is not None:
        rows[1].copy_(whole)
    else:
        _take_block(wanted, whole)


def _take_block(wanted: Released, whole: torch.Tensor) -> None:
    """Copy this process's block of a tensor that is sharded along another dimension than the first."""
    tensor = wanted.tensor
    assert isinstance(tensor, DTensor)
    if any(not isinstance(p, Replicate) and type(p) is not Shard for p in tensor.placements):
        raise CheckpointError(f"{wanted.name} is sharded as {tensor.placements}, which cannot be read; use Shard")
    local = tensor.detach().to_local()  # type: ignore[attr-defined]
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    block = [slice(start, start + size) for start, size in zip(offset, shape, strict=True)]
    if wanted.row is None:
        local.copy_(whole[tuple(block)])
    elif block[0].start <= wanted.row < block[0].stop:
        local[wanted.row - block[0].start].copy_(whole[tuple(block[1:])])


def digests(directory: Path, files: Sequence[str], group: Group = ALONE) -> dict[str, str]:
    """Return the digest of each file's tensors (`tensors_digest`), read from the disk; every process reads a share.

    Raises `CheckpointError` for a file that is missing or damaged; in all processes.
    """
    places = {(file, name): place for file in files for name, place in _places(directory / file).items()}
    shares = _dealt([place.size for place in places.values()], group.size)

    def own() -> dict[tuple[str, str], str]:
        found = {}
        for file in files:
            with saying(file, "read"), tensor_file.opened(directory / file, os.O_RDONLY) as descriptor:
                for rank, ((where, name), place) in zip(shares, places.items(), strict=True):
                    if rank == group.rank and where == file:
                        parts = tensor_file.pieces(descriptor, place)
                        found[file, name] = pieces_digest(place.dtype, place.shape, parts)
        return found

    everybody = {key: digest for part in group.together(own) for key, digest in part.items()}
    return {
        file: combined_digest({name: digest for (where, name), digest in everybody.items() if where == file})
        for file in files
    }


def _places(path: Path) -> dict[str, tensor_file.TensorPlace]:
    if not path.is_file():
        raise CheckpointError(f"{path} is not there")
    return tensor_file.read_places(path)


def _dealt(sizes: Sequence[int], ranks: int) -> list[int]:
    """Return the process that takes each thing, in order, so that all take about as many bytes."""
    total, taken, found = max(sum(sizes), 1), 0, []
    for size in sizes:
        found.append(min(taken * ranks // total, ranks - 1))
        taken += size
    return found


@contextmanager
def saying(file: str, act: str = "write") -> Iterator[None]:
    """Turn an `OSError` of the block into a `CheckpointError` that says which file it is about."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot {act} {file}: {error}") from error
