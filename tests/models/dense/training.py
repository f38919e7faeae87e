"""The training side of the dense family."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from transformers import PretrainedConfig, Qwen2Config, Qwen2ForCausalLM

from omni_rl.errors import CheckpointError, ConfigError
from omni_rl.files.companions import Companions
from omni_rl.files.weights import weight_files
from omni_rl.media.slots import FeatureCounts
from omni_rl.models.tensor_file import read_places
from omni_rl.settings import Numerics
from tests.models.dense.model import DenseModel


class DenseTraining:
    """See `omni_rl.models.family.Training`."""

    def check_checkpoint(self, directory: Path) -> None:
        with torch.device("meta"):
            model = DenseModel(Qwen2ForCausalLM(Qwen2Config.from_pretrained(directory)))
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        stored = {name: place.shape for path in weight_files(directory) for name, place in read_places(path).items()}
        wrong = [name for name in expected.keys() | stored.keys() if expected.get(name) != stored.get(name)]
        if wrong:
            raise CheckpointError(f"{directory} does not fit its configuration: {', '.join(sorted(wrong))}")

    def feature_counts(self, config: PretrainedConfig) -> FeatureCounts:
        return FeatureCounts(side=None, frames=1, halvings=None)

    def load_sharded(
        self, directory: Path, mesh: DeviceMesh, compute_dtype: torch.dtype, numerics: Numerics
    ) -> DenseModel:
        if numerics != "reference":
            raise ConfigError(f'numerics "{numerics}" are not there for dense models; use "reference"')
        causal = Qwen2ForCausalLM.from_pretrained(directory, dtype=torch.float32)
        model = DenseModel(causal, Companions.read(directory))
        policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
        for part in (*model.model.layers, model):
            fully_shard(part, mesh=mesh, mp_policy=policy)
        register_fsdp_forward_method(model, "score_packed")
        return model

    def reference(self, config: PretrainedConfig, released: Mapping[str, torch.Tensor]) -> DenseModel:
        model = DenseModel(Qwen2ForCausalLM(config)).float()
        model.load_state_dict(released)
        return model


TRAINING = DenseTraining()
