"""Files that several writers fill and several readers share hold what one writer and one reader would have."""

import os
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from omni_rl.media.digests import pieces_digest, tensor_digest
from omni_rl.models import tensor_file

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.int64])
SHAPES = st.lists(st.integers(0, 7), max_size=3).map(tuple)
PIECES = st.sampled_from([8, 24, 2**24])


def _tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randint(-100, 100, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@settings(max_examples=60, deadline=None)
@given(specs=st.lists(st.tuples(SHAPES, DTYPES, DTYPES), min_size=1, max_size=5), ranks=st.integers(1, 4), piece=PIECES)
def test_what_many_write_one_reads_and_what_one_wrote_many_read(
    specs: list[tuple[tuple[int, ...], torch.dtype, torch.dtype]],
    ranks: int,
    piece: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("file") / "model.safetensors"
    own = {f"tensor.{n}": _tensor(shape, held, n) for n, (shape, held, _) in enumerate(specs)}
    shapes = {f"tensor.{n}": (stored, shape) for n, (shape, _, stored) in enumerate(specs)}
    tensor_file.create(path, shapes)
    places = tensor_file.arrange(shapes)
    with patch.object(tensor_file, "_PIECE", piece):
        for rank in reversed(range(ranks)):
            with tensor_file.opened(path, os.O_WRONLY) as out:
                for name, tensor in own.items():
                    start, end = (tensor.numel() * edge // ranks for edge in (rank, rank + 1))
                    tensor_file.write_from(out, places[name], start, tensor.reshape(-1)[start:end])
        written = load_file(path)
        assert tensor_file.read_places(path) == places
        for name, tensor in own.items():
            assert written[name].dtype == shapes[name][0]
            assert torch.equal(written[name], tensor.to(shapes[name][0]))
        with tensor_file.opened(path, os.O_RDONLY) as source:
            for name, tensor in own.items():
                parts = []
                for rank in range(ranks):
                    start, end = (tensor.numel() * edge // ranks for edge in (rank, rank + 1))
                    part = torch.empty(end - start, dtype=tensor.dtype)
                    tensor_file.read_into(source, places[name], start, part)
                    parts.append(part)
                assert torch.equal(torch.cat(parts), written[name].to(tensor.dtype).reshape(-1))
                found = pieces_digest(places[name].dtype, places[name].shape, tensor_file.pieces(source, places[name]))
                assert found == tensor_digest(written[name])
