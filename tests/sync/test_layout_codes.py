"""Tensors that tell where their elements went, and random ones that confirm it."""

import math

import pytest
import torch

from omni_rl.sync.layout.codes import BASE, CHUNK, UNDECODED, CodedTensors, chunks, decode, digits_needed, first_numbers
from omni_rl.sync.layout.random_weights import RandomTensors
from omni_rl.sync.released import TensorSpec

SPECS = {
    "a": TensorSpec(torch.float32, (100, 3)),
    "none": TensorSpec(torch.float32, (0, 7)),
    "b": TensorSpec(torch.int64, ()),
    "c": TensorSpec(torch.bfloat16, (500,)),
}


def test_elements_are_numbered_through_all_tensors() -> None:
    assert first_numbers(SPECS) == [0, 300, 300, 301, 801]
    assert first_numbers({}) == [0]


@pytest.mark.parametrize("shift", [0, 128])
@pytest.mark.parametrize("digit", [0, 1, 2])
def test_a_coded_element_holds_a_digit_of_its_number(digit: int, shift: int) -> None:
    tensors = CodedTensors(SPECS, digit, shift)
    assert (len(tensors), list(tensors)) == (4, list(SPECS))
    for (name, spec), first in zip(SPECS.items(), (0, 300, 300, 301), strict=True):
        made = tensors[name]
        assert (made.dtype, tuple(made.shape)) == (spec.dtype, spec.shape)
        step = 0.25 if spec.dtype.is_floating_point else 1
        expected = [((first + i) // 256**digit + shift) % 256 * step for i in range(made.numel())]
        assert made.flatten().tolist() == expected


def test_tensors_larger_than_a_chunk_are_numbered_on() -> None:
    made = CodedTensors({"w": TensorSpec(torch.float32, (CHUNK + 2,))}, 1)["w"]
    assert (4 * made[CHUNK - 1 :]).tolist() == [(CHUNK - 1) // 256 % 256, CHUNK // 256 % 256, CHUNK // 256 % 256]
    assert [(part.start, part.stop) for part in chunks(2 * CHUNK + 1)] == [
        *((0, CHUNK), (CHUNK, 2 * CHUNK), (2 * CHUNK, 2 * CHUNK + 1))
    ]
    assert [(part.start, part.stop) for part in chunks(CHUNK)] == [(0, CHUNK)]
    assert list(chunks(0)) == []
    # Few enough that a billion elements are a matter of seconds, and small enough for a processor's cache.
    assert 2**4 < len(list(chunks(2**24))) < 2**12


@pytest.mark.parametrize(
    ("elements", "digits"), [(0, 1), (1, 1), (256, 1), (257, 2), (2**16, 2), (2**16 + 1, 3), (2**24, 3), (2**24 + 1, 4)]
)
def test_as_many_digits_are_loaded_as_tell_all_elements_apart(elements: int, digits: int) -> None:
    assert digits_needed(elements) == digits


FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int64, torch.int32], ids=str)
def test_every_digit_is_read_again(dtype: torch.dtype) -> None:
    step = 0.25 if dtype.is_floating_point else 1
    values = torch.tensor([digit * step for digit in range(256)]).to(dtype)
    assert decode(values).tolist() == list(range(256))
    assert decode(values).dtype == torch.int16


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_digit_is_read_again_through_a_negative_exponential(dtype: torch.dtype) -> None:
    values = torch.tensor([-math.exp(digit / 4) for digit in range(256)]).to(dtype)
    assert decode(values).tolist() == [256 + digit for digit in range(256)]


def test_what_a_loader_did_more_to_is_not_read() -> None:
    odd = [0.3, 64.0, 1e9, float("inf"), float("-inf"), float("nan"), -0.5, -math.exp(64.0), -1.5]
    odd += [-math.exp(0.25 * 3.002), -math.exp(0.25 * 2.998)]
    assert decode(torch.tensor(odd, dtype=torch.float32)).tolist() == [UNDECODED] * len(odd)
    near = [-math.exp(0.25 * 3.0005), -math.exp(0.25 * 2.9995), -1.0, -0.0]
    assert decode(torch.tensor(near, dtype=torch.float32)).tolist() == [BASE + 3, BASE + 3, BASE, 0]
    assert decode(torch.tensor([256, -1, 255, 0])).tolist() == [UNDECODED, UNDECODED, 255, 0]
    assert decode(torch.tensor(odd, dtype=torch.bfloat16)).tolist()[:7] == [UNDECODED] * 7


@pytest.mark.parametrize(
    ("dtype", "whole", "mantissa", "low", "bias"),
    [
        (torch.bfloat16, torch.int16, 7, 3, 127),
        (torch.float16, torch.int16, 10, 2, 15),
        (torch.float32, torch.int32, 23, 3, 127),
        (torch.float64, torch.int64, 52, 3, 1023),
    ],
)
def test_random_floats_have_either_sign_any_mantissa_and_magnitudes_up_to_two(
    dtype: torch.dtype, whole: torch.dtype, mantissa: int, low: int, bias: int
) -> None:
    made = RandomTensors({"w": TensorSpec(dtype, (3, 1001))}, seed=1)["w"]
    assert (made.dtype, tuple(made.shape)) == (dtype, (3, 1001))
    drawn = made.view(whole).flatten().tolist()
    bits = torch.iinfo(whole).bits
    ever = always = drawn[0]
    for number in drawn:
        ever, always = ever | number, always & number
    # Everything below the exponent's upper bits varies, and so does the sign.
    assert always % 2**bits == bias >> low << low + mantissa
    assert ever % 2**bits == 2 ** (bits - 1) | bias << mantissa | 2**mantissa - 1
    assert made.abs().max() < 2
    assert made.abs().min() >= 2**-7 if low == 3 else 2**-3


def test_random_tensors_are_equal_for_equal_seeds_alone() -> None:
    specs = {"a": TensorSpec(torch.float32, (5,)), "b": TensorSpec(torch.float32, (5,))}
    tensors = RandomTensors(specs, 3)
    assert (len(tensors), list(tensors)) == (2, ["a", "b"])
    assert torch.equal(tensors["a"], RandomTensors(specs, 3)["a"])
    assert not torch.equal(tensors["a"], tensors["b"])
    for other in RandomTensors(specs, 4).values():
        assert not torch.equal(tensors["a"], other)
        assert not torch.equal(tensors["b"], other)
    assert RandomTensors({"w": TensorSpec(torch.bfloat16, (0,))}, 0)["w"].tolist() == []


def test_random_integers_are_many_and_fit_every_dtype() -> None:
    made = RandomTensors({"w": TensorSpec(torch.int64, (5000,)), "i": TensorSpec(torch.int32, ())}, 0)
    assert (made["w"].dtype, made["i"].dtype) == (torch.int64, torch.int32)
    assert 0 <= int(made["w"].min()) < 2**12
    assert 2**20 - 2**12 < int(made["w"].max()) < 2**20
