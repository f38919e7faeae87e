"""Logprobs of packed sequences with their media.

Shapes: T packed tokens; N scored positions; L MoE layers; K experts a token.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from omni_rl.models.nemotron_omni.features import media_features
from omni_rl.models.nemotron_omni.language.layout import PackedLayout
from omni_rl.models.nemotron_omni.language.moe import RoutingRecord
from omni_rl.models.nemotron_omni.logprobs import token_logprobs
from omni_rl.models.nemotron_omni.packed import PackedMedia, PackedScores, PackedSequences
from omni_rl.models.nemotron_omni.scatter import scatter_features
from omni_rl.models.nemotron_omni.touch import touch_unused

if TYPE_CHECKING:
    from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration


def embed(
    model: "NemotronOmniForConditionalGeneration", ids: torch.Tensor, media: Sequence[PackedMedia]
) -> torch.Tensor:
    """Embeddings [T, hidden] of packed `ids` int64 [T], with every media item's features in its places."""
    embeds: torch.Tensor = model.get_input_embeddings()(ids)
    if media:
        embeds = scatter_features(embeds, media, media_features(model, media))
    return touch_unused(model, embeds, (item.modality for item in media))


def score(
    model: "NemotronOmniForConditionalGeneration",
    batch: PackedSequences,
    temperature: float | torch.Tensor,
    logprob_chunk: int,
    record_routing: bool,
) -> PackedScores:
    """See `NemotronOmniForConditionalGeneration.score_packed`."""
    layout = PackedLayout.of(batch.cu_seqlens)
    scored = batch.score_mask.nonzero().squeeze(1)
    assert not (layout.position[scored] == 0).any(), "a sequence's first token has nothing before it to score it"
    record = RoutingRecord() if record_routing else None
    hidden = model.language_model.model(embed(model, batch.ids, batch.media), layout, record)
    head = model.language_model.lm_head.weight
    logprobs = token_logprobs(hidden[scored - 1], head, batch.ids[scored], temperature, logprob_chunk)
    if record is None or not record.layers:
        return PackedScores(logprobs, None, None)
    return PackedScores(logprobs, record.experts(), record.margins())
