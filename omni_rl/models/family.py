"""Says what the trainer, the engine and the syncs ask of a model family: everything that only it knows."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Protocol

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from omni_rl.errors import ConfigError
from omni_rl.heap import uncollected
from omni_rl.kinds import Modality
from omni_rl.media.slots import FeatureCounts
from omni_rl.models.recording import ModuleSide
from omni_rl.models.training_model import TrainingModel
from omni_rl.settings import Numerics
from omni_rl.sync.released import ReleasedFormat


class Training(Protocol):
    """A family's training side: it checks a checkpoint and makes training models of it."""

    def check_checkpoint(self, directory: Path) -> None:
        """Raise `CheckpointError` that lists every missing, unexpected or misshapen tensor of a checkpoint, and
        `ConfigError` for a configuration that is not served. Reads headers only."""

    def feature_counts(self, config: Any) -> FeatureCounts:
        """Return how many features a model of this configuration makes of media."""

    def load_sharded(
        self, directory: Path, mesh: DeviceMesh, compute_dtype: torch.dtype, numerics: Numerics
    ) -> TrainingModel:
        """Return the model of a checkpoint over `mesh`, with float32 master weights, of which each rank reads its own.

        `score_packed` runs under FSDP's hooks. Raises `CheckpointError`, and `ConfigError` for `numerics` that the
        family does not have.
        """

    def reference(self, config: Any, released: Mapping[str, torch.Tensor]) -> TrainingModel:
        """Return an unsharded float32 model in this process, made of a configuration and all released tensors."""


class Serving:
    """The engine's side of a family that vLLM serves as it is. A family that needs more derives its own.

    Only processes that have vLLM use it.
    """

    def register(self) -> None:
        """Teach vLLM what it lacks, before it starts. Idempotent."""

    def make_invariant(self, model: nn.Module) -> None:
        """Give a loaded model operators by which prefill has the bits of decode; its weights stay as they are.

        Raises `ConfigError` where that is not to be had.
        """
        raise ConfigError("batch_invariant is not there for this model family; leave it out")


@dataclass(frozen=True)
class Family:
    """Describes a model family.

    `name` is for messages, `model_types` are those of config.json that the family serves, and `modalities` the media
    that its models take. `in_engine` and `in_trainer` say which modules of each side are compared: they map a regular
    expression of module names to a name that both sides share. Both must lead to `recording.LAST_NORM`, and
    `in_engine` to `recording.LOGITS` too. `released` says which tensors of a checkpoint are synced. `training_at` and
    `serving_at` name a `Training` and a `Serving` as "module:object", because their modules import packages that not
    every process has; without `serving_at`, vLLM's own class is served as it is. `frame_time` matches how a rendered
    prompt writes the time of a video's frame, with groups for whole seconds and for hundredths of one.
    """

    name: str
    model_types: tuple[str, ...]
    modalities: tuple[Modality, ...]
    training_at: str
    in_engine: Mapping[str, ModuleSide]
    in_trainer: Mapping[str, ModuleSide]
    released: ReleasedFormat = field(default_factory=ReleasedFormat)
    serving_at: str | None = None
    frame_time: re.Pattern[str] | None = None

    @property
    def training(self) -> Training:
        """The training side. Asking for it imports torch and transformers."""
        with uncollected():
            found: Training = resolve_name(self.training_at)
        return found

    @property
    def serving(self) -> Serving:
        """The engine's side. Asking for it imports vLLM's insides."""
        with uncollected():
            found: Serving = Serving() if self.serving_at is None else resolve_name(self.serving_at)
        return found
