"""Fingerprints against a reference in plain Python, and over every way to lay the same elements out."""

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_rl.agent import tensors
from omni_rl.agent.fingerprint import Fingerprint, hash_sum, total
from omni_rl.agent.tensors import fingerprint

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int8, torch.uint8)
OF_ONE = 5431107038034560256


def reference(tensor: torch.Tensor) -> int:
    """The definition, element by element, in Python's own integers."""
    size = tensor.element_size()
    raw = bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())
    found = 0
    for start in range(0, len(raw), size):
        bits = int.from_bytes(raw[start : start + size], "little")
        if size == 8:
            mixed = bits * 0x9E3779B97F4A7C15 % 2**64
            mixed ^= mixed >> 32
            found += mixed * (bits ^ 0xC2B2AE3D27D4EB4F)
        else:
            mixed = bits * 0x9E3779B1 % 2**32
            mixed ^= mixed >> 15
            found += mixed * (bits ^ 0x85EBCA6B)
    return found % 2**64


def random(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return torch.randint(0, 100, shape, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@given(rows=st.integers(0, 9), width=st.integers(1, 300), seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_every_way_to_compute_it_is_the_definition(dtype: torch.dtype, rows: int, width: int, seed: int) -> None:
    tensor = random((rows, width), dtype, seed)
    found = fingerprint(tensor)
    assert (found.dtype, found.elements) == (str(dtype).removeprefix("torch."), rows * width)
    assert found.hashes == reference(tensor)
    flat = tensor.reshape(-1)
    on_device = tensors._on_device(flat)
    assert on_device.same(found)
    assert on_device.squares == pytest.approx(found.squares, rel=1e-5)
    unsigned = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[tensor.element_size()]
    signed = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    assert hash_sum(flat.view(signed).numpy().view(unsigned)) == found.hashes
    if dtype.is_floating_point:
        assert found.squares == pytest.approx(float((tensor.double() ** 2).sum()), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(seed=st.integers(0, 2**31), cut=st.integers(1, 11), pad=st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_layout_does_not_matter(dtype: torch.dtype, seed: int, cut: int, pad: int) -> None:
    whole = random((12, 40), dtype, seed)
    of_whole = fingerprint(whole)
    shuffled = whole.reshape(-1)[torch.randperm(480, generator=torch.Generator().manual_seed(seed))]
    padded = torch.cat([whole, torch.zeros(pad, 40, dtype=dtype)])
    assert fingerprint(whole.T).same(of_whole)
    assert fingerprint(shuffled).same(of_whole)
    assert fingerprint(padded).hashes == of_whole.hashes
    assert total([fingerprint(whole[:cut]), fingerprint(whole[cut:])]).same(of_whole)
    assert total([fingerprint(whole[:, :cut]), fingerprint(whole[:, cut:])]).same(of_whole)
    assert total(fingerprint(row) for row in whole).same(of_whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(seed=st.integers(0, 2**31), at=st.integers(0, 479), bit=st.integers(0, 15))
@settings(max_examples=50, deadline=None)
def test_one_flipped_bit_is_seen(dtype: torch.dtype, seed: int, at: int, bit: int) -> None:
    tensor = random((480,), dtype, seed)
    broken = tensor.clone()
    broken.view(torch.int16 if dtype == torch.bfloat16 else torch.int32)[at] ^= 1 << bit if bit < 15 else -(1 << 15)
    assert not fingerprint(broken).same(fingerprint(tensor))


def test_no_two_elements_of_16_bits_have_the_same_hash() -> None:
    every = np.arange(65536, dtype=np.uint16)
    assert len({hash_sum(every[index : index + 1]) for index in range(65536)}) == 65536


@given(seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_steps_of_one_unit_that_cancel_in_value_are_seen(seed: int) -> None:
    """An update that adds to one element what it takes from another leaves sums of values as they were."""
    bits = random((64,), torch.float32, seed).view(torch.int32)
    moved = bits.clone()
    moved[0] += 1
    moved[1] -= 1
    assert not fingerprint(moved.view(torch.float32)).same(fingerprint(bits.view(torch.float32)))


def test_pieces_and_casts_are_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = random((7, 13, 11), torch.float32, 3)
    whole, cast = fingerprint(tensor), fingerprint(tensor.bfloat16())
    monkeypatch.setattr(tensors, "PIECE", 20)
    assert fingerprint(tensor.permute(2, 0, 1)).same(whole)
    assert fingerprint(tensor, torch.bfloat16).same(cast)
    monkeypatch.setattr(tensors, "kernels", None)
    assert fingerprint(tensor).same(whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_zeros_and_numbers_that_are_none_are_counted(dtype: torch.dtype) -> None:
    assert fingerprint(torch.zeros(5, dtype=dtype)).zero
    signed = fingerprint(torch.tensor([0.0, -0.0], dtype=dtype))
    assert (signed.zero, signed.vanishes) == (False, True)
    assert not fingerprint(torch.tensor([0.0, 1.0], dtype=dtype)).vanishes
    assert not fingerprint(torch.tensor([0.0, torch.nan], dtype=dtype)).vanishes
    tiny = torch.full((3,), torch.finfo(dtype).tiny, dtype=dtype)
    assert not fingerprint(tiny).zero
    broken = torch.tensor([1.0, float("nan"), float("inf"), 2.0], dtype=dtype)
    found = fingerprint(broken)
    assert found.nonfinite == 2
    assert found.squares == 5.0
    large = torch.full((2,), 1e4, dtype=dtype)
    assert fingerprint(large).nonfinite == 0


def test_dtypes_do_not_add_up() -> None:
    with pytest.raises(ValueError, match="do not add up"):
        Fingerprint("float32", 1, 1) + Fingerprint("bfloat16", 1, 1)
    with pytest.raises(ValueError, match="no parts"):
        total([])


def test_the_constant_of_a_known_value() -> None:
    """Fingerprints that were written before stay comparable."""
    (bits,) = struct.unpack("<I", struct.pack("<f", 1.0))
    assert bits == 0x3F800000
    assert fingerprint(torch.ones(1)).hashes == hash_sum(np.array([bits], np.uint32)) == OF_ONE
