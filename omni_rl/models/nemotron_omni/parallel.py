"""Applies FSDP2: which parts are sharded together, and in which precision they compute."""

from pathlib import Path

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from omni_rl.files.reading import read_whole
from omni_rl.models.nemotron_omni import checkpoint, placement
from omni_rl.models.nemotron_omni.backend import BackendConfig
from omni_rl.models.nemotron_omni.keywords import Loading
from omni_rl.models.nemotron_omni.language.block import Block
from omni_rl.models.nemotron_omni.language.mamba import StateDecay
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration

# Entry points that run under FSDP's hooks: parameters are gathered before and freed after.
FORWARD_METHODS = (
    "score_packed",
    "extract_feature",
    "extract_feature_dynamic",
    "extract_video_feature",
    "extract_sound_feature",
    "prepare_model_inputs_for_cp",
)


def load_sharded(
    directory: Path,
    mesh: DeviceMesh,
    compute_dtype: torch.dtype = torch.float32,
    backend: BackendConfig | None = None,
) -> NemotronOmniForConditionalGeneration:
    """Return the model of a checkpoint directory over `mesh`, with float32 master weights, of which each rank reads its
    own.

    See `shard`. Raises `CheckpointError` as `from_pretrained` does.
    """

    def read() -> NemotronOmniForConditionalGeneration:
        loading = Loading(torch.device("meta"), torch.float32)
        model = checkpoint.outline(NemotronOmniForConditionalGeneration, directory, loading, backend)
        shard(model, mesh, compute_dtype)
        placement.materialise(model, torch.device(mesh.device_type))
        checkpoint.read_weights(model, directory)
        return model

    return read_whole(directory, read)


def shard(
    model: NemotronOmniForConditionalGeneration, mesh: DeviceMesh, compute_dtype: torch.dtype = torch.float32
) -> NemotronOmniForConditionalGeneration:
    """Shard `model` (float32 parameters: the master weights) in place over a one-dimensional `mesh`.

    One unit a block; the root unit holds embeddings, towers, projectors and head, so that every rank gathers the same
    units in the same order whatever media its batch has. With `compute_dtype` bfloat16 the forward uses bfloat16
    copies of all parameters but A_log, and gradients are reduced in float32.
    """
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    exact = MixedPrecisionPolicy(cast_forward_inputs=False)
    for module in model.modules():
        if isinstance(module, StateDecay):
            fully_shard(module, mesh=mesh, mp_policy=exact)
    for module in model.modules():
        if isinstance(module, Block):
            fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for name in FORWARD_METHODS:
        register_fsdp_forward_method(model, name)
    return model
