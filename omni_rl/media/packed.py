"""Tensors as they travel between processes: torch pickles each as a whole file, numpy hands over its bytes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PackedTensor:
    """A tensor's bytes. `data` is uint8 [bytes], row-major; `dtype` is torch's name ("bfloat16", which numpy does not
    have)."""

    data: NDArray[np.uint8]
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: "torch.Tensor") -> "PackedTensor":
        import torch

        plain = tensor.detach().contiguous().cpu()
        data = plain.reshape(-1).view(torch.uint8).numpy() if plain.numel() else np.empty(0, np.uint8)
        return cls(data, str(plain.dtype).removeprefix("torch."), tuple(plain.shape))

    def tensor(self) -> "torch.Tensor":
        """Return the tensor on the host, with memory of its own: what arrives through Ray's object store must not be
        written to."""
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype)
        if not self.data.size:
            return torch.empty(self.shape, dtype=dtype)
        return torch.from_numpy(self.data.copy()).view(dtype).reshape(self.shape)
