"""Defines the training sides that are compared with the engine: ours in each numerics, and transformers' own Omni."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from omni_rl.kinds import KINDS
from omni_rl.models.nemotron_omni.backend import BackendConfig
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.rollout.types import Rollout
from omni_rl.settings import Numerics
from omni_rl.train.packing import pack, temperatures
from omni_rl_bench.scoring.policies import Method, Theirs, load_transformers
from omni_rl_bench.scoring.workload import Sample

# transformers' fastest method in `omni-rl bench scoring`.
TRANSFORMERS = Method("transformers", "one_by_one", chunk=16)


class Side(Protocol):
    """Computes differentiable logprobs of answers. `kinds` are the kinds of prompts that it can score."""

    kinds: Sequence[str]

    def score(self, answers: Sequence[Rollout]) -> torch.Tensor: ...

    def clear(self) -> None: ...


class Ours:
    """Scores all answers in one pack, as a trainer's rank does."""

    kinds: Sequence[str] = KINDS

    def __init__(self, checkpoint: Path, dtype: torch.dtype, numerics: Numerics) -> None:
        backend = BackendConfig(numerics=numerics)
        self.model = NemotronOmniForConditionalGeneration.from_pretrained(checkpoint, dtype=dtype, backend=backend)

    def score(self, answers: Sequence[Rollout]) -> torch.Tensor:
        """Return float32 [scored tokens], answer after answer."""
        return self.model.score_packed(pack(answers), temperature=temperatures(answers)).logprobs

    def clear(self) -> None:
        self.model.zero_grad()


class Transformers:
    """Scores one answer after the other. It cannot score videos (its forward raises) nor every sound (it counts frames
    otherwise than vLLM)."""

    kinds: Sequence[str] = ("text", "image")

    def __init__(self, checkpoint: Path, dtype: torch.dtype) -> None:
        self._model = load_transformers(checkpoint, dtype)
        self._policy = Theirs(self._model, TRANSFORMERS)

    def score(self, answers: Sequence[Rollout]) -> torch.Tensor:
        """Return float32 [scored tokens], answer after answer, at temperature 1."""
        return torch.cat([self._policy.score([_sample(answer)])[-len(answer.ids) :] for answer in answers])

    def clear(self) -> None:
        self._model.zero_grad()


def logprobs(side: Side, answers: Sequence[Rollout]) -> list[NDArray[np.float64]]:
    """Return the logprobs of each answer, scored by itself."""
    with torch.no_grad():
        return [side.score([answer]).double().numpy() for answer in answers]


def _sample(answer: Rollout) -> Sample:
    images = tuple(item.tensors["pixel_values_flat"] for item in answer.prompt.items)
    return Sample(torch.from_numpy(np.concatenate([answer.prompt.ids, answer.ids])), images)
