"""A policy small enough to check by hand, at the seam where the Omni model stands."""

import torch
from torch import nn

from omni_rl.models.packed import PackedScores, PackedSequences

VOCABULARY = 512
EXPERTS = 4


class Bigram(nn.Module):
    """The next token depends on the last one, and on the mean of the media in its place. Routes by token id."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(VOCABULARY, 8, generator=generator))
        self.head = nn.Parameter(torch.randn(8, VOCABULARY, generator=generator))

    def score_packed(
        self, batch: PackedSequences, *, temperature: float | torch.Tensor, logprob_chunk: int, record_routing: bool
    ) -> PackedScores:
        hidden = self.table[batch.ids]
        for media in batch.media:
            mean = sum(tensor.float().mean() for tensor in media.tensors.values())
            hidden = hidden.index_add(0, media.positions, torch.full((len(media.positions), 8), float(mean)))
        scored = batch.score_mask.nonzero()[:, 0]
        temperatures = torch.as_tensor(temperature).reshape(-1, 1)
        logits = hidden[scored - 1] @ self.head / temperatures
        logprobs = logits.log_softmax(-1).gather(1, batch.ids[scored, None])[:, 0]
        experts = torch.stack([batch.ids % EXPERTS, (batch.ids + 1) % EXPERTS], dim=-1)[:, None].to(torch.int16)
        margins = batch.ids[:, None].float()
        if not record_routing:
            return PackedScores(logprobs, None, None, hidden=hidden[scored - 1])
        return PackedScores(logprobs, experts, margins, hidden=hidden[scored - 1])
