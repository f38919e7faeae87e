"""Computes loss, logits and hidden states from embeddings of a padded batch, in the form that transformers returns
them.

Shapes: B samples of up to L tokens; V vocabulary.
"""

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from omni_rl.errors import PromptError
from omni_rl.models.logprobs import token_logprobs
from omni_rl.models.nemotron_omni.language.layout import PackedLayout
from omni_rl.models.nemotron_omni.language.model import NemotronHForCausalLM
from omni_rl.models.nemotron_omni.packed_rows import RowPacking
from omni_rl.models.nemotron_omni.padded import PaddedBatch

IGNORED = -100


def causal_output(
    language_model: NemotronHForCausalLM,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    labels: torch.Tensor | None,
    logits_to_keep: int | torch.Tensor,
    output_hidden_states: bool,
    logprob_chunk: int,
    packing: RowPacking | None = None,
    num_items_in_batch: int | torch.Tensor | None = None,
) -> CausalLMOutputWithPast:
    """Run the language model on `inputs_embeds` [B, L, hidden]; padding (to the right) is not computed and gives zeros.

    `logits_to_keep`: 0 means all positions, n the last n, a tensor the positions that it holds; logits are [B, kept,
    V]. `labels` int64 [B, L] give the mean cross-entropy over shifted positions that are not -100, zero where all are;
    with `num_items_in_batch` their sum over that number, of all the batches whose gradients are accumulated. `packing`
    says where a row holds several sequences.
    """
    batch = PaddedBatch.of(inputs_embeds.shape[:2], attention_mask, inputs_embeds.device, packing)
    layout = PackedLayout.of(batch.cu_seqlens)
    hidden = language_model.model(batch.pack(inputs_embeds), layout)
    loss = None
    if labels is not None:
        if labels.shape != inputs_embeds.shape[:2]:
            raise PromptError(f"labels have the shape {list(labels.shape)}, tokens {list(inputs_embeds.shape[:2])}")
        targets = batch.pack(labels)
        scored = ((targets != IGNORED) & (layout.position > 0)).nonzero().squeeze(1)
        logprobs = token_logprobs(hidden[scored - 1], language_model.lm_head, targets[scored], chunk=logprob_chunk)
        loss = -logprobs.sum() / (max(len(scored), 1) if num_items_in_batch is None else num_items_in_batch)
    padded = batch.unpack(hidden)
    kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
    logits = language_model.lm_head(padded if kept == slice(0, None) else padded[:, kept])
    return CausalLMOutputWithPast(loss=loss, logits=logits, hidden_states=(padded,) if output_hidden_states else None)
