"""The checksum against its formula, and against damage."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from omni_rl.sync.checksum import Checksum

MASK = 2**64 - 1


def splitmix64(index: int) -> int:
    """Output `index` of the generator with seed 0, as published."""
    z = (index + 1) * 0x9E3779B97F4A7C15 & MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def by_the_formula(data: bytes) -> str:
    padded = data + bytes(-len(data) % 4)
    words = [int.from_bytes(padded[i : i + 4], "little") for i in range(0, len(padded), 4)]
    plain = sum(words)
    placed = sum(i * word for i, word in enumerate(words))
    weighted = sum(
        (splitmix64(i % 1024) >> 32 | 1) * (splitmix64(1024 + i // 1024) | 1) * word for i, word in enumerate(words)
    )
    return "".join(f"{lane & MASK:016x}" for lane in (plain, placed, weighted))


def checksum(data: bytes) -> str:
    return str(Checksum.of(np.frombuffer(data, np.uint8)))


def noise(seed: int, size: int) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8).tobytes()


@pytest.mark.parametrize("size", [0, 1, 3, 4, 4095, 4096, 4097, 20_003])
def test_it_is_the_formula_in_plain_integers(size: int) -> None:
    data = noise(size, size)
    assert checksum(data) == by_the_formula(data)


def test_large_words_do_not_overflow_a_lane_differently() -> None:
    data = b"\xff" * 40_000
    assert checksum(data) == by_the_formula(data)


@given(st.binary(max_size=9000), st.lists(st.integers(0, 9000), max_size=4))
def test_shares_of_any_parts_add_up(data: bytes, cuts: list[int]) -> None:
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    array = np.frombuffer(data, np.uint8)
    shares = [Checksum.of(array[a:b], a) for a, b in pairwise(edges)]
    assert str(Checksum.total(shares)) == checksum(data)


@settings(deadline=None)  # the first example may compile the loop
@given(st.binary(max_size=9000), st.lists(st.integers(0, 9000), max_size=4), st.integers(0, 3), st.integers(0, 3))
def test_parts_that_are_copied_arrive_and_add_up(data: bytes, cuts: list[int], out: int, into: int) -> None:
    """Bytes are copied from and to any alignment, and nothing beside the target is touched."""
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    source = np.frombuffer(bytes(out) + data, np.uint8)[out:]
    room = np.full(len(data) + 8, 0xA5, np.uint8)
    target = room[into : into + len(data)]
    shares = [Checksum.of_copied(source[a:b], target[a:b], a) for a, b in pairwise(edges)]
    assert str(Checksum.total(shares)) == by_the_formula(data)
    assert target.tobytes() == data
    assert room[:into].tobytes() + room[into + len(data) :].tobytes() == b"\xa5" * 8


@pytest.mark.parametrize("start", [0, 8])
def test_what_is_copied_is_what_is_summed_though_the_source_changes_meanwhile(start: int) -> None:
    """Each word that is copied is the source's next."""
    room = np.frombuffer(bytearray(noise(start, 4096)), np.uint8)
    source, target = room[:-4], room[4:]
    found = Checksum.of_copied(source, target, start)
    assert str(found) == str(Checksum.of(target, start))


@given(st.binary(min_size=1, max_size=9000), st.data())
def test_any_flipped_bit_is_seen(data: bytes, draw: st.DataObject) -> None:
    bit = draw.draw(st.integers(0, 8 * len(data) - 1))
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    assert checksum(bytes(damaged)) != checksum(data)


@given(st.lists(st.integers(0, 2**16 - 1), min_size=2, max_size=4000), st.data())
def test_any_swapped_pair_is_seen(values: list[int], draw: st.DataObject) -> None:
    """The elements have two bytes: the smallest that are sent but for single bytes."""
    i, j = draw.draw(st.integers(0, len(values) - 1)), draw.draw(st.integers(0, len(values) - 1))
    assume(values[i] != values[j])
    data = np.array(values, np.uint16)
    swapped = data.copy()
    swapped[i], swapped[j] = data[j], data[i]
    assert checksum(swapped.tobytes()) != checksum(data.tobytes())


@pytest.mark.parametrize("distance", [2, 4, 1024, 2048, 65536])
def test_a_swapped_sign_is_seen_at_any_distance(distance: int) -> None:
    """Sums of 64-bit words lose it at even distances: the top bit times an even number is nothing modulo 2^64."""
    values = np.ones(distance + 8, np.float32)
    values[3] = -1.0
    swapped = np.ones(distance + 8, np.float32)
    swapped[3 + distance] = -1.0
    assert checksum(values.tobytes()) != checksum(swapped.tobytes())


@given(st.integers(0, 10_000), st.integers(1, 64), st.integers(1, 2000), st.integers(0, 2000))
def test_a_shifted_block_is_seen(seed: int, shift: int, size: int, start: int) -> None:
    data = bytearray(noise(seed, 4096 * 2))
    block = data[start : start + size]
    assume(bytes(data[start + shift : start + shift + size]) != bytes(block))
    shifted = bytearray(data)
    shifted[start + shift : start + shift + size] = block
    assert checksum(bytes(shifted)) != checksum(bytes(data))


@pytest.mark.parametrize("step", [1, 7, 1024])
def test_damage_that_cancels_in_position_weighted_sums_is_seen(step: int) -> None:
    values = np.full(4096, 1000, np.uint32)
    damaged = values.copy()
    damaged[10] += 5
    damaged[10 + step] -= 10
    damaged[10 + 2 * step] += 5
    assert checksum(damaged.tobytes()) != checksum(values.tobytes())


def test_exchanged_blocks_are_seen() -> None:
    data = noise(0, 4096 * 3)
    assert checksum(data[4096:8192] + data[:4096] + data[8192:]) != checksum(data)


def test_strides_do_not_matter() -> None:
    tensor = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    assert str(Checksum.of_tensor(tensor.t())) == str(Checksum.of_tensor(tensor.t().contiguous()))
    assert str(Checksum.of_tensor(tensor.t())) != str(Checksum.of_tensor(tensor))
