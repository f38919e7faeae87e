"""Random released tensors, to compare what a loader does with what a map says."""

from collections.abc import Iterator, Mapping

import torch

from omni_rl.sync.released import TensorSpec

EXPONENTS = (-6.0, 5.0)  # of two: their exponentials are finite in float32


class RandomTensors(Mapping[str, torch.Tensor]):
    """Values of `specs` of either sign over many magnitudes; the same for the same seed, each made when asked for."""

    def __init__(self, specs: Mapping[str, TensorSpec], seed: int) -> None:
        self._specs, self._seed = specs, seed
        self._index = {name: index for index, name in enumerate(specs)}

    def __getitem__(self, name: str) -> torch.Tensor:
        spec = self._specs[name]
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._index[name])
        if not spec.dtype.is_floating_point:
            return torch.randint(2**20, spec.shape, generator=generator).to(spec.dtype)
        values = (
            torch.rand(spec.shape, generator=generator).mul_(EXPONENTS[1] - EXPONENTS[0]).add_(EXPONENTS[0]).exp2_()
        )
        signs = torch.randint(2, spec.shape, generator=generator, dtype=torch.int8).mul_(2).sub_(1)
        return values.mul_(signs).to(spec.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)
