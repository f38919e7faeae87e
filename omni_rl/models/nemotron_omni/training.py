"""The training side of Nemotron Omni, as `omni_rl.models.family` asks for it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from omni_rl.media.slots import FeatureCounts
from omni_rl.models.nemotron_omni import parallel, placement, whole
from omni_rl.models.nemotron_omni.backend import BackendConfig
from omni_rl.models.nemotron_omni.checkpoint import parse_dtype
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.nemotron_omni.feature_counts import feature_counts
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.settings import Numerics


class NemotronOmniTraining:
    """See `omni_rl.models.family.Training`."""

    def check_checkpoint(self, directory: Path) -> None:
        config = NemotronOmniConfig.from_pretrained(directory)
        parse_dtype(None, config)
        whole.check_checkpoint(directory, config)

    def feature_counts(self, config: Any) -> FeatureCounts:
        return feature_counts(config)

    def load_sharded(
        self, directory: Path, mesh: DeviceMesh, compute_dtype: torch.dtype, numerics: Numerics
    ) -> NemotronOmniForConditionalGeneration:
        return parallel.load_sharded(directory, mesh, compute_dtype, BackendConfig(numerics=numerics))

    def reference(self, config: Any, released: Mapping[str, torch.Tensor]) -> NemotronOmniForConditionalGeneration:
        with torch.device("meta"):
            model = NemotronOmniForConditionalGeneration(config)
        model.float()
        placement.materialise(model, torch.device("cpu"))
        model.state_dict_adapter.load(model.state_dict(), released.items())
        return model


TRAINING = NemotronOmniTraining()
