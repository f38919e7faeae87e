"""Fingerprints the LoRA adapters that a vLLM worker has loaded."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from omni_rl.agent.bodies import AdapterSums, Sums
from omni_rl.agent.names import canonical
from omni_rl.agent.tensors import fingerprint


def adapters(manager: Any, names: Mapping[int, str]) -> list[AdapterSums]:
    """Return what the adapter manager of vLLM's LoRA worker manager holds. `names` has the adapters' names by number,
    as requests gave them.

    vLLM multiplies the scale into B and packs the adapters of a fused module into lists, one entry a member.
    """
    found = []
    for number, adapter in manager.list_adapters().items():
        sums: Sums = {}
        ranks = [0]
        for path, weights in adapter.loras.items():
            for name, first, second in _members(manager, path, weights):
                sums[f"{name}.lora_A"] = (fingerprint(first),)
                sums[f"{name}.lora_B"] = (fingerprint(second),)
                ranks.append(first.shape[0])
        found.append(AdapterSums.of(names.get(number, str(number)), max(ranks), sums))
    return found


def _members(manager: Any, path: str, weights: Any) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    if isinstance(weights.lora_a, torch.Tensor):
        if weights.lora_a.ndim == 2:
            yield canonical(path), weights.lora_a, weights.lora_b
        return
    members = manager.packed_modules.get(path, ())
    for name, first, second in zip(members, weights.lora_a, weights.lora_b, strict=False):
        if first is not None and first.ndim == 2:
            yield canonical(name), first, second
