"""Makes random released tensors, to compare what a loader does with what a map says."""

from collections.abc import Iterator, Mapping

import torch

from omni_rl.sync.released import TensorSpec

# Which bits of a float are random: sign, mantissa and the exponent's lowest; the others are set so that magnitudes lie
# between 2^-8 and 2, whose exponentials are finite.
RANDOM_BITS = {
    torch.bfloat16: (torch.int16, 0x83FF, 0x3C00),
    torch.float16: (torch.int16, 0x8FFF, 0x3000),
    torch.float32: (torch.int32, 0x83FFFFFF, 0x3C000000),
    torch.float64: (torch.int64, 0x807FFFFFFFFFFFFF, 0x3F80000000000000),
}
INTEGERS = 2**20


class RandomTensors(Mapping[str, torch.Tensor]):
    """Random values of `specs`: of either sign, over many magnitudes, equal for equal seeds, each tensor made when
    asked for."""

    def __init__(self, specs: Mapping[str, TensorSpec], seed: int) -> None:
        self._specs, self._seed = specs, seed
        self._index = {name: index for index, name in enumerate(specs)}

    def __getitem__(self, name: str) -> torch.Tensor:
        spec = self._specs[name]
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._index[name])
        if not spec.dtype.is_floating_point:
            return torch.randint(INTEGERS, spec.shape, generator=generator).to(spec.dtype)
        whole, random, fixed = RANDOM_BITS[spec.dtype]
        elements = torch.Size(spec.shape).numel()
        words = torch.empty(-(-elements * spec.dtype.itemsize // 8), dtype=torch.int64)
        words.random_(-(2**63), None, generator=generator)
        drawn = words.view(whole)[:elements].view(spec.shape)
        return drawn.bitwise_and_(_signed(random, whole)).bitwise_or_(fixed).view(spec.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)


def _signed(mask: int, dtype: torch.dtype) -> int:
    """Return the number whose bits in `dtype` are those of `mask`."""
    bits = torch.iinfo(dtype).bits
    return mask - 2**bits if mask >= 2 ** (bits - 1) else mask
