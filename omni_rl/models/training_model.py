"""Says what the trainer needs of a model, whatever its family."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from omni_rl.models.packed import PackedScores, PackedSequences
from omni_rl.sync.released import Released


class TrainingModel(nn.Module):
    """The base of every family's training model. `config` is its configuration, as transformers would have it."""

    config: Any

    def score_packed(
        self, batch: PackedSequences, *, temperature: float | torch.Tensor, logprob_chunk: int, record_routing: bool
    ) -> PackedScores:
        """Return differentiable logprobs of the tokens under `batch.score_mask`.

        `temperature` divides the float32 logits: a number, or float32 [N] for the N scored tokens. `logprob_chunk`
        positions have their logits in memory at once. With `record_routing`, experts and margins are in the scores.
        """
        raise NotImplementedError

    def get_output_embeddings(self) -> nn.Module:
        """Return the head; transformers has the method by this name."""
        raise NotImplementedError

    def head_weight(self) -> torch.Tensor:
        """Return the head's matrix [vocabulary, hidden], a DTensor where it is sharded."""
        weight = self.get_output_embeddings().weight
        assert isinstance(weight, torch.Tensor)
        return weight

    def released_tensors(self) -> list[Released]:
        """Return every weight under its released name, in the model's dtypes: the same list on every rank."""
        raise NotImplementedError

    def write_beside(self, directory: Path, dtype: torch.dtype) -> None:
        """Write config.json and what else stands beside the weights, for an engine that serves them in `dtype`."""
        raise NotImplementedError
