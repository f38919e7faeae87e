"""Computes what the trainer is asked when the two policies disagree: its module outputs, logprobs straight from its
logits, the checksums of its weights, and the logprobs of a float32 reference.

Every function is given a rank, and all ranks call it: under FSDP they run the same units in the same order. Whoever
asks imports this module to name the function, and needs nothing of FSDP for that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from omni_rl.models.recording import LAST_NORM, LOGITS, ModuleSide, places, recording
from omni_rl.models.training_model import TrainingModel
from omni_rl.rollout.types import Rollout
from omni_rl.sync.manifest import root_digest
from omni_rl.train.device import CPU
from omni_rl.train.scoring import score_pack
from omni_rl.train.settings import TrainSettings

if TYPE_CHECKING:
    from omni_rl.train.worker import TrainWorker


def activations(worker: "TrainWorker", rollout: Rollout) -> dict[str, NDArray[np.float32]]:
    """Return the output at every place of the model, float32 [N, W] by the place's name, for one answer that is scored
    by itself; see `recording`."""
    model = worker.model
    with recording(places(model, worker.family.in_trainer)) as taken:
        score_pack(
            model,
            [rollout],
            version=str(worker.version()),
            logprob_chunk=worker.settings.logprob_chunk,
            device=worker.device,
        )
    found = taken()
    found[LOGITS] = _logits(worker.model, _answers(found[LAST_NORM], rollout), getattr(torch, worker.settings.dtype))
    return found


def logprobs(worker: "TrainWorker", rollouts: Sequence[Rollout]) -> list[NDArray[np.float64]]:
    """Return the logprobs of each answer at its temperature, float64 [T], straight from the logits of its forward, one
    answer at a time. Scoring, with its packs and temperatures, should give the same."""
    dtype = getattr(torch, worker.settings.dtype)
    version = str(worker.version())
    where = worker.family.in_trainer
    return [
        _logprobs(worker.model, where, rollout, dtype, version, worker.settings, worker.device) for rollout in rollouts
    ]


def _logprobs(
    model: TrainingModel,
    where: Mapping[str, ModuleSide],
    rollout: Rollout,
    dtype: torch.dtype,
    version: str,
    settings: TrainSettings,
    device: torch.device = CPU,
) -> NDArray[np.float64]:
    with recording({LAST_NORM: places(model, where)[LAST_NORM]}) as taken:
        score_pack(model, [rollout], version=version, logprob_chunk=settings.logprob_chunk, device=device)
    hidden = _answers(taken()[LAST_NORM], rollout)
    parts = []
    for start in range(0, len(rollout.ids), settings.logprob_chunk):
        rows = slice(start, start + settings.logprob_chunk)
        logits = torch.from_numpy(_logits(model, hidden[rows], dtype)) / rollout.temperature
        chosen = torch.from_numpy(rollout.ids[rows].copy())[:, None]
        parts.append(torch.log_softmax(logits, -1).gather(1, chosen)[:, 0].double().numpy())
    return np.concatenate(parts)


def _answers(rows: NDArray[np.float32], rollout: Rollout) -> NDArray[np.float32]:
    """Return the rows from which the answer's tokens are chosen, out of the rows of the whole sequence."""
    return rows[-len(rollout.ids) - 1 : -1]


def _logits(model: TrainingModel, hidden: NDArray[np.float32], dtype: torch.dtype) -> NDArray[np.float32]:
    """Return the logits of rows of the last norm's output, computed in the forward's dtype. No hook can take them,
    because the loss computes its logits outside of any module."""
    from torch.distributed.tensor import DTensor

    weight = model.head_weight().detach()
    whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
    logits = F.linear(torch.from_numpy(hidden).to(whole.device, dtype), whole.to(dtype))
    found: NDArray[np.float32] = logits.float().cpu().numpy()
    return found


def checksums(worker: "TrainWorker") -> tuple[str, str, dict[str, str]]:
    """Return the version that the trainer reports, the version of the weights that it holds, and their checksums by
    released name.

    An update gives the weights a new version. Anything else that writes to the model does not, so that the two versions
    differ here.
    """
    reported = worker.version()
    held = worker.read_back()
    return str(reported), str(replace(reported, digest=root_digest(held))), {e.name: e.checksum for e in held}


def reference(worker: "TrainWorker", rollouts: Sequence[Rollout]) -> list[NDArray[np.float64]]:
    """Return the logprobs of each answer at its temperature, float64 [T], computed in float32 with the weights as they
    are sent to an engine.

    Rank 0 computes them on its host, which holds all weights meanwhile; the other ranks return an empty list. The
    answers run one at a time, without packing.
    """
    from omni_rl.sync.parts import Shares

    version = str(worker.version())
    dtype, family = getattr(torch, worker.settings.dtype), worker.family
    shares = Shares(first=worker.rank == 0, gather=True)
    sent = {
        each.name: family.released.as_sent(each.name, shares.of(each)[1], dtype).cpu()
        for each in worker.model.released_tensors()
    }
    if worker.rank:
        return []
    model = family.training.reference(worker.model.config, sent)
    where = family.in_trainer
    return [_logprobs(model, where, rollout, torch.float32, version, worker.settings) for rollout in rollouts]
