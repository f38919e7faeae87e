"""Computes the digest that names weights from the tensors themselves."""

from collections.abc import Iterable, Mapping

import torch

from omni_rl.sync.checksum import Checksum
from omni_rl.sync.manifest import Entry, arrange, root_digest


def shapes(tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return each tensor's dtype, as manifests write it, and shape, by its name."""
    return {name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for name, tensor in tensors}


def checksums(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the checksums of whole tensors by name, as manifests write them."""
    return {name: str(Checksum.of_tensor(tensor)) for name, tensor in tensors.items()}


def weights_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the `WeightVersion.digest` of these tensors, which a manifest of a slab that holds them has too; in one
    pass."""
    entries = []
    for name, tensor in tensors.items():
        (entry,) = arrange(shapes([(name, tensor)]))
        entries.append(Entry(name, entry.dtype, entry.shape, 0, str(Checksum.of_tensor(tensor))))
    return root_digest(entries)
