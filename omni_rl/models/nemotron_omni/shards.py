"""A model's weights in released names without gathering them: each the model's own tensor, or a row of a stack."""

from typing import TYPE_CHECKING

import torch

from omni_rl.models.nemotron_omni.state_dict_adapter import NemotronOmniStateDictAdapter
from omni_rl.models.storage import Stored
from omni_rl.sync.parts import Released
from omni_rl.sync.released import sent_dtype

if TYPE_CHECKING:
    from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration


def released_tensors(model: "NemotronOmniForConditionalGeneration") -> list[Released]:
    """Every weight of a sharded or whole `model`, in the model's dtypes; the same list on every rank."""
    adapter = NemotronOmniStateDictAdapter()
    found = []
    for name, tensor in model.state_dict().items():
        named = adapter.convert_single_tensor_to_hf(name, torch.empty(tensor.shape, device="meta"))
        stacked = named[0][1].shape != tensor.shape
        found += [Released(released, tensor, row if stacked else None) for row, (released, _) in enumerate(named)]
    return found


def stored_tensors(model: "NemotronOmniForConditionalGeneration", dtype: torch.dtype) -> list[Stored]:
    """The same, in the dtypes that an engine of `dtype` holds."""
    return [Stored(r, sent_dtype(r.name, r.dtype, dtype)) for r in released_tensors(model)]
