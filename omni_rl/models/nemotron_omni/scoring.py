"""Computes logprobs of packed sequences with their media.

Shapes: T packed tokens; N scored positions; L MoE layers; K experts a token.
"""

from collections.abc import Sequence

import torch

from omni_rl.errors import PromptError
from omni_rl.models.logprobs import token_logprobs
from omni_rl.models.nemotron_omni.features import media_features
from omni_rl.models.nemotron_omni.language.layout import PackedLayout
from omni_rl.models.nemotron_omni.language.moe import RoutingRecord
from omni_rl.models.nemotron_omni.parts import NemotronOmniParts
from omni_rl.models.nemotron_omni.pruned import place
from omni_rl.models.nemotron_omni.scatter import scatter_features
from omni_rl.models.nemotron_omni.unused import zero_gradients_of_unused
from omni_rl.models.packed import PackedMedia, PackedScores, PackedSequences


def embed(
    model: NemotronOmniParts, ids: torch.Tensor, media: Sequence[PackedMedia]
) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
    """Return embeddings [T, hidden] of packed `ids` int64 [T], with every media item's features in its places.

    The second result is, for each item, the tokens of a pruned video that its features choose to keep; see
    `pruned.place`.
    """
    placed = place(ids, media, media_features(model, media))
    embeds: torch.Tensor = model.get_input_embeddings()(placed.ids)
    if media:
        embeds = scatter_features(embeds, placed.media, placed.features)
    return zero_gradients_of_unused(model, embeds, (item.modality for item in media)), placed.kept


def _require_sequences(batch: PackedSequences) -> None:
    tokens, bounds = len(batch.ids), batch.cu_seqlens
    if not tokens:
        raise PromptError("the batch has no tokens")
    if batch.score_mask.shape != batch.ids.shape:
        raise PromptError(f"score_mask has the shape {list(batch.score_mask.shape)} for {tokens} tokens")
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != tokens or (bounds.diff() < 0).any():
        raise PromptError(f"cu_seqlens {bounds.tolist()} do not go from 0 to {tokens}, the number of tokens, in order")


def score(
    model: NemotronOmniParts,
    batch: PackedSequences,
    temperature: float | torch.Tensor,
    logprob_chunk: int,
    record_routing: bool,
) -> PackedScores:
    """Score a pack; see `NemotronOmniForConditionalGeneration.score_packed`."""
    _require_sequences(batch)
    layout = PackedLayout.of(batch.cu_seqlens)
    scored = batch.score_mask.nonzero().squeeze(1)
    if (layout.position[scored] == 0).any():
        raise PromptError("score_mask asks for a sequence's first token, which has nothing before it to score it")
    record = RoutingRecord(batch.experts) if record_routing or batch.experts is not None else None
    embeds, kept = embed(model, batch.ids, batch.media)
    hidden = model.language_model.model(embeds, layout, record)
    chosen_in = hidden[scored - 1]
    logprobs = token_logprobs(chosen_in, model.get_output_embeddings(), batch.ids[scored], temperature, logprob_chunk)
    if record is None or not record_routing or not record.layers:
        return PackedScores(logprobs, None, None, kept, chosen_in)
    return PackedScores(logprobs, record.experts(), record.margins(), kept, chosen_in)
