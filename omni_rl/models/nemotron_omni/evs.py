"""Does efficient video sampling: chooses which video tokens stay when pruning is on. Shapes: F tubelets of N tokens."""

import torch
from torch.nn import functional as F

from omni_rl.media.pruning import kept_count


def retention_mask(embeddings: torch.Tensor, pruning_rate: float) -> torch.Tensor:
    """Return bool [F, N]: True for the tokens of `embeddings` [F, N, hidden] that differ most from the token at their
    place in the tubelet before.

    The first tubelet always stays; max(N, int(F·N·(1 - rate))) tokens stay in all, and of equal ones the earlier. The
    rule is the engine's, so that a pruned prompt is the same sequence on both sides.
    """
    tubelets, tokens = embeddings.shape[:2]
    similarity = F.cosine_similarity(embeddings[1:], embeddings[:-1], dim=-1)
    # 255 is above every dissimilarity (at most 2) and representable in every dtype.
    dissimilarity = torch.cat([torch.full_like(embeddings[:1, :, 0], 255), 1 - similarity]).flatten()
    kept = kept_count(tubelets, tokens, pruning_rate)
    order = dissimilarity.argsort(descending=True, stable=True)
    mask = torch.zeros(tubelets * tokens, dtype=torch.bool, device=embeddings.device)
    return mask.index_fill(0, order[:kept], True).view(tubelets, tokens)
