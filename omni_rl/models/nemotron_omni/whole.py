"""Checks a checkpoint against its own configuration, before vLLM gets it.

vLLM leaves the parameter of an absent tensor as it was allocated, ignores some surplus tensors, and reports success.
"""

from pathlib import Path

import torch

from omni_rl.errors import CheckpointError
from omni_rl.files.weights import open_weights, weight_files
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.models.nemotron_omni.released import RELEASED


def check_checkpoint(directory: Path, config: NemotronOmniConfig) -> None:
    """Raise `CheckpointError` that lists every missing, unexpected or misshapen tensor. Reads headers only."""
    stored = _stored_shapes(directory)
    expected = _expected_shapes(config)
    problems = [f"missing {name}" for name in sorted(expected.keys() - stored.keys())]
    problems += [f"unexpected {name}" for name in sorted(stored.keys() - expected.keys())]
    problems += [
        f"shape of {name}: {stored[name]} in the checkpoint, {expected[name]} by its configuration"
        for name in sorted(stored.keys() & expected.keys())
        if stored[name] != expected[name]
    ]
    if problems:
        raise CheckpointError(f"{directory} does not fit its configuration:\n  " + "\n  ".join(problems))


def _stored_shapes(directory: Path) -> dict[str, list[int]]:
    shapes: dict[str, list[int]] = {}
    for path in weight_files(directory):
        with open_weights(path) as stored:
            names = [name for name in stored.keys() if RELEASED.is_sent(name)]  # noqa: SIM118, not a dict
            shapes |= {name: list(stored.get_slice(name).get_shape()) for name in names}
    return shapes


def _expected_shapes(config: NemotronOmniConfig) -> dict[str, list[int]]:
    with torch.device("meta"):
        model = NemotronOmniForConditionalGeneration(config)
    adapter = model.state_dict_adapter
    return {
        released: list(part.shape)
        for name, tensor in model.state_dict().items()
        for released, part in adapter.convert_single_tensor_to_hf(name, tensor)
    }
