"""The training copy of the dense family."""

import copy
from pathlib import Path

import torch
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from omni_rl.files.companions import Companions
from omni_rl.models.logprobs import token_logprobs
from omni_rl.models.packed import PackedScores, PackedSequences
from omni_rl.models.training_model import TrainingModel
from omni_rl.sync.released import Released


class DenseModel(TrainingModel):
    """transformers' modules under the names that they have in a checkpoint."""

    def __init__(self, causal: Qwen2ForCausalLM, companions: Companions | None = None) -> None:
        super().__init__()
        self.config: Qwen2Config = causal.config
        self.model = causal.model
        self.lm_head = causal.lm_head
        self._companions = companions

    def score_packed(
        self, batch: PackedSequences, *, temperature: float | torch.Tensor, logprob_chunk: int, record_routing: bool
    ) -> PackedScores:
        """See `TrainingModel.score_packed`. The sequences become the rows of one padded batch."""
        lengths = batch.cu_seqlens.diff().tolist()
        ids = nn.utils.rnn.pad_sequence(list(torch.split(batch.ids, lengths)), batch_first=True)
        mask = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]
        found = self.model(input_ids=ids, attention_mask=mask.long(), use_cache=False)
        hidden = found.last_hidden_state[mask]
        scored = batch.score_mask.nonzero().squeeze(1)
        chosen_in = hidden[scored - 1]
        logprobs = token_logprobs(chosen_in, self.lm_head, batch.ids[scored], temperature, logprob_chunk)
        return PackedScores(logprobs, None, None, hidden=chosen_in)

    def get_output_embeddings(self) -> nn.Module:
        head: nn.Module = self.lm_head
        return head

    def released_tensors(self) -> list[Released]:
        return [Released(name, tensor) for name, tensor in self.state_dict().items()]

    def write_beside(self, directory: Path, dtype: torch.dtype) -> None:
        served = copy.deepcopy(self.config)
        served.dtype = dtype
        served.save_pretrained(directory)
        if self._companions is not None:
            self._companions.write(directory)
