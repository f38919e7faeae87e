"""New weights for a running engine: checked as a whole, then written in place."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from omni_rl.errors import CheckpointError, WeightUpdateError
from omni_rl.sync.digest import weights_digest
from omni_rl.sync.released import TensorSpec, as_sent, is_sent
from omni_rl.sync.version import WeightVersion

NAMES_IN_MESSAGE = 10


class CheckpointTensors(Mapping[str, torch.Tensor]):
    """The weights of a checkpoint directory as sync would send them, each read when it is asked for."""

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._files: dict[str, Any] = {}
        for file in sorted(path.glob("*.safetensors")):
            handle: Any = safe_open(file, framework="pt")
            self._files.update((name, handle) for name in handle.keys() if is_sent(name))  # noqa: SIM118, not a dict
        if not self._files:
            raise CheckpointError(f"{path} has no *.safetensors file; other formats are not read")

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return as_sent(name, tensor, self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


class ReleasedWeights:
    """The released names one engine was loaded from, with the dtypes and shapes that an update must have."""

    def __init__(self, checkpoint: Path, dtype: torch.dtype) -> None:
        tensors = CheckpointTensors(checkpoint, dtype)
        self.digest = weights_digest(tensors)
        self.parameters = sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point())
        self.specs = {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}

    def check(self, tensors: Mapping[str, torch.Tensor], version: str) -> None:
        """Raise `WeightUpdateError` unless `tensors` are complete and are what `version` names."""
        missing = sorted(self.specs.keys() - tensors.keys())
        unexpected = sorted(tensors.keys() - self.specs.keys())
        wrong = [
            f"{name} ({tensors[name].dtype} {list(tensors[name].shape)}, not {spec.dtype} {list(spec.shape)})"
            for name, spec in sorted(self.specs.items())
            if name in tensors and TensorSpec(tensors[name].dtype, tuple(tensors[name].shape)) != spec
        ]
        problems = [
            f"{len(names)} {what}: {', '.join(names[:NAMES_IN_MESSAGE])}{' ...' * (len(names) > NAMES_IN_MESSAGE)}"
            for what, names in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("of the wrong dtype or shape", wrong),
            )
            if names
        ]
        if problems:
            raise WeightUpdateError(
                f"the tensors sent as {version} are not those that the engine holds: {'; '.join(problems)}. Nothing "
                "was written; send every released tensor as omni_rl.sync.released.as_sent gives it"
            )
        digest = weights_digest(tensors)
        named = WeightVersion.parse(version).digest
        if not named or not digest.startswith(named):
            raise WeightUpdateError(
                f"the tensors sent as {version} have the digest {digest[:16]}: they are other weights, or were damaged "
                "on the way. Nothing was written"
            )


def write_in_place(model: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy released tensors into the engine's parameters by its own loader, as a fresh load would."""
    with torch.no_grad():
        model.load_weights(iter(tensors.items()))
