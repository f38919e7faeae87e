"""Position codes: values that survive any dtype an engine loads through, and say which released element they were."""

from collections.abc import Iterator, Mapping

import torch

from omni_rl.sync.released import TensorSpec

# bfloat16 holds 256 equidistant values exactly. Quarters of 0 to 63.75 do too, and their exponential fits in float32
# with room: a code that a loader turned into -exp(code) is still told from its neighbours.
BASE = 256
STEP = 0.25
ROUNDING = 1e-3  # of a digit; float32's error in log(exp(63.75)) is a hundredth of it
UNDECODED = -1


class CodedTensors(Mapping[str, torch.Tensor]):
    """Digit `digit` (base 256, lowest is 0) of every element's number, plus `shift`, as tensors of `specs`.

    Elements are numbered through all tensors in the order of `specs`. Each tensor is made when it is asked for.
    """

    def __init__(self, specs: Mapping[str, TensorSpec], digit: int, shift: int = 0) -> None:
        self._specs, self._digit, self._shift = specs, digit, shift
        self._first = dict(zip(specs, first_numbers(specs), strict=False))

    def __getitem__(self, name: str) -> torch.Tensor:
        spec, first = self._specs[name], self._first[name]
        elements = torch.Size(spec.shape).numel()
        numbers = torch.arange(first, first + elements, dtype=torch.int64)
        digits = (numbers // BASE**self._digit + self._shift) % BASE
        values: torch.Tensor = digits * STEP if spec.dtype.is_floating_point else digits
        return values.to(spec.dtype).reshape(spec.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)


def first_numbers(specs: Mapping[str, TensorSpec]) -> list[int]:
    """The number of each tensor's first element, and last the number of all elements."""
    numbers = [0]
    for spec in specs.values():
        numbers.append(numbers[-1] + torch.Size(spec.shape).numel())
    return numbers


def digits_needed(elements: int) -> int:
    """How many passes of `BASE` values tell `elements` elements apart."""
    digits = 1
    while BASE**digits < elements:
        digits += 1
    return digits


def decode(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Digits (int16, `UNDECODED` where a value is no code) and the `Transform` each came through (int8) of `values`.

    A plain code is never negative, a negative exponential always is.
    """
    if not values.is_floating_point():
        found = (values >= 0) & (values < BASE)
        return torch.where(found, values, UNDECODED).to(torch.int16), torch.zeros_like(values, dtype=torch.int8)
    wide = values.double()
    negative = wide < 0
    digits = torch.where(negative, torch.log(-wide.clamp(max=-1e-300)), wide) / STEP
    nearest = digits.round()
    found = torch.where(negative, (digits - nearest).abs() < ROUNDING, digits == nearest)
    found &= (nearest >= 0) & (nearest < BASE)
    return torch.where(found, nearest, UNDECODED).to(torch.int16), negative.to(torch.int8)
