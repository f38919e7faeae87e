"""Lists a model's weights in released names without gathering them: each the model's own tensor, or a row of a
stack."""

import torch

from omni_rl.models.nemotron_omni.parts import NemotronOmniParts
from omni_rl.models.nemotron_omni.released import RELEASED
from omni_rl.models.nemotron_omni.state_dict_adapter import NemotronOmniStateDictAdapter
from omni_rl.models.storage import Stored
from omni_rl.sync.released import Released


def released_tensors(model: NemotronOmniParts) -> list[Released]:
    """Return every weight of a sharded or whole `model`, in the model's dtypes; the same list on every rank."""
    adapter = NemotronOmniStateDictAdapter()
    found = []
    for name, tensor in model.state_dict().items():
        named = adapter.convert_single_tensor_to_hf(name, torch.empty(tensor.shape, device="meta"))
        stacked = named[0][1].shape != tensor.shape
        found += [Released(released, tensor, row if stacked else None) for row, (released, _) in enumerate(named)]
    return found


def stored_tensors(model: NemotronOmniParts, dtype: torch.dtype) -> list[Stored]:
    """Return the same weights, in the dtypes that an engine of `dtype` holds."""
    return Stored.served(released_tensors(model), RELEASED, dtype)
