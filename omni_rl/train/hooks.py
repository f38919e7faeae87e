"""The trainer's half of a localisation, and its float32 reference.

Every function is given a rank, and all ranks call it: under FSDP they run the same units in the same order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from omni_rl.models.nemotron_omni import placement
from omni_rl.models.nemotron_omni.checkpoint import released_state
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.rollout.hooks import LOGITS, Place, places, recording
from omni_rl.rollout.types import Rollout
from omni_rl.train.scoring import score_pack
from omni_rl.train.worker import TrainWorker

# As `omni_rl.rollout.hooks.PLACES`, by the trainer's names.
PLACES: Mapping[str, Place] = {
    r"vision_model\.embeddings\.patch_projection": Place("vision.patches", "input"),
    r"vision_model\.embeddings\.video_patch_projection": Place("vision.video_patches", "input"),
    r"vision_model\.encoder\.layer\.(\d+)\.attention": Place(r"vision.layers.\1.attention"),
    r"vision_model\.encoder\.layer\.(\d+)\.mlp": Place(r"vision.layers.\1.mlp"),
    r"vision_projector": Place("vision_projector"),
    r"sound_encoder\.subsampling": Place("sound.subsampling"),
    r"sound_encoder\.subsampling\.layers\.0": Place("sound.features", "input"),
    r"sound_encoder\.layers\.(\d+)": Place(r"sound.layers.\1"),
    r"sound_projection": Place("sound_projection"),
    r"language_model\.model\.layers\.0": Place("embeddings", "input"),
    r"language_model\.model\.layers\.(\d+)\.norm": Place(r"layers.\1.norm"),
    r"language_model\.model\.layers\.(\d+)\.mixer": Place(r"layers.\1.mixer"),
    r"language_model\.model\.norm": Place("norm"),
}


def activations(worker: TrainWorker, rollout: Rollout) -> dict[str, NDArray[np.float32]]:
    """Outputs of every place for one answer, scored by itself; see `recording`."""
    model = worker.model
    with recording(places(model, PLACES)) as taken:
        score_pack(
            model,
            [rollout],
            version=str(worker.version()),
            logprob_chunk=worker.settings.logprob_chunk,
            device=worker.device,
        )
    found = taken()
    found[LOGITS] = _logits(worker, found["norm"][-len(rollout.ids) - 1 : -1])
    return found


def _logits(worker: TrainWorker, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of rows of the last norm's output, in the forward's dtype: the loss makes them without a module to hook."""
    weight = worker.model.language_model.lm_head.weight.detach()
    whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
    dtype = getattr(torch, worker.settings.dtype)
    logits = F.linear(torch.from_numpy(hidden).to(whole.device, dtype), whole.to(dtype))
    found: NDArray[np.float32] = logits.float().cpu().numpy()
    return found


def reference(worker: TrainWorker, rollouts: Sequence[Rollout]) -> list[NDArray[np.float64]]:
    """Logprobs of each answer at temperature 1, computed in float32 with the weights as they are sent to an engine.

    On rank 0's host, which holds all weights meanwhile; the others give nothing. One answer at a time: nothing is
    packed.
    """
    version = str(worker.version())
    weights = released_state(worker.model, getattr(torch, worker.settings.dtype))
    sent = {name: tensor.cpu() for name, tensor in weights if worker.rank == 0}
    if worker.rank:
        return []
    with torch.device("meta"):
        model = NemotronOmniForConditionalGeneration(worker.model.config)
    placement.cast(model, torch.float32)
    placement.materialise(model, torch.device("cpu"))
    model.state_dict_adapter.load(model.state_dict(), sent.items())
    found = []
    for rollout in rollouts:
        (score,) = score_pack(
            model,
            [replace(rollout, temperature=1.0)],
            version=version,
            logprob_chunk=worker.settings.logprob_chunk,
        )
        found.append(score.logprobs)
    return found
