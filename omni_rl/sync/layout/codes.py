"""Makes position codes: values that survive any dtype an engine loads through, and tell which released element they
were."""

from collections.abc import Iterator, Mapping
from functools import cache

import torch

from omni_rl.sync.layout.blocks import Transform
from omni_rl.sync.released import TensorSpec

# bfloat16 holds 256 equidistant values exactly. Quarters of 0 to 63.75 do too, and their exponential fits in float32
# with room: a code that a loader turned into -exp(code) is still told from its neighbours.
BITS = 8
BASE = 2**BITS
STEP = 0.25
ROUNDING = 1e-3  # of a digit; float32's error in log(exp(63.75)) is a hundredth of it
UNDECODED = -1
SMALLEST = -(2**15)  # of 16 bits, signed
CHUNK = 2**15  # elements worked on at a time, so that intermediate values stay in the processor's cache


class CodedTensors(Mapping[str, torch.Tensor]):
    """Tensors of `specs` whose elements hold digit `digit` (base 256, lowest is 0) of their own number, plus `shift`.

    Elements are numbered through all tensors in the order of `specs`. Each tensor is made when it is asked for.
    """

    def __init__(self, specs: Mapping[str, TensorSpec], digit: int, shift: int = 0) -> None:
        self._specs, self._digit, self._shift = specs, digit, shift
        self._first = dict(zip(specs, first_numbers(specs), strict=False))

    def __getitem__(self, name: str) -> torch.Tensor:
        spec, first = self._specs[name], self._first[name]
        values = torch.empty(spec.shape, dtype=spec.dtype)
        flat = values.view(-1)
        for part in chunks(flat.numel()):
            numbers = torch.arange(first + part.start, first + part.stop)
            digits = (numbers >> BITS * self._digit).add_(self._shift).bitwise_and_(BASE - 1)
            flat[part].copy_(digits)
            if spec.dtype.is_floating_point:
                flat[part].mul_(STEP)
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)


def first_numbers(specs: Mapping[str, TensorSpec]) -> list[int]:
    """Return the number of each tensor's first element, and last the number of all elements."""
    numbers = [0]
    for spec in specs.values():
        numbers.append(numbers[-1] + torch.Size(spec.shape).numel())
    return numbers


def digits_needed(elements: int) -> int:
    """Return how many passes of `BASE` values tell `elements` elements apart."""
    digits = 1
    while BASE**digits < elements:
        digits += 1
    return digits


def chunks(elements: int) -> Iterator[slice]:
    """Yield consecutive slices of at most `CHUNK` elements."""
    return (slice(start, min(start + CHUNK, elements)) for start in range(0, elements, CHUNK))


def decode(values: torch.Tensor) -> torch.Tensor:
    """Return the code (int16) of each of `values`: its digit plus `BASE` times its `Transform`; `UNDECODED` if it has
    none."""
    if values.element_size() == 2:
        return _table(values.dtype, values.device)[values.view(torch.int16).int() - SMALLEST]
    return _decode_each(values)


@cache
def _table(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return the codes of all values of a dtype of 16 bits, ordered by their bits as a signed number."""
    everything = torch.arange(SMALLEST, -SMALLEST, dtype=torch.int32, device=device).to(torch.int16)
    return _decode_each(everything.view(dtype))


def _decode_each(values: torch.Tensor) -> torch.Tensor:
    """Decode element by element: a plain digit is never negative, a negative exponential always is."""
    wide = values.float()
    digits = wide / STEP if values.is_floating_point() else wide
    nearest = digits.round()
    found = digits == nearest
    negative = wide < 0
    if values.is_floating_point() and negative.any():
        logarithms = torch.log(-wide[negative]) / STEP
        nearest[negative] = logarithms.round()
        found[negative] = (logarithms - logarithms.round()).abs() < ROUNDING
    found &= (nearest >= 0) & (nearest < BASE)
    codes = torch.where(found, nearest, UNDECODED).to(torch.int16)
    return codes.add_(BASE * Transform.NEGATIVE_EXPONENTIAL * (negative & found))
