"""The pruning rule against vLLM's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.multimodal.video_prune.evs import compute_retention_mask

from omni_rl.models.nemotron_omni.evs import retention_mask


@given(
    tubelets=st.integers(1, 6),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    rate=st.floats(0, 0.99),
    repeated=st.booleans(),
    seed=st.integers(0, 100),
)
@settings(max_examples=60, deadline=None)
def test_the_kept_tokens_are_vllms(
    tubelets: int, rows: int, columns: int, rate: float, repeated: bool, seed: int
) -> None:
    embeddings = torch.randn(tubelets, rows * columns, 8, generator=torch.Generator().manual_seed(seed))
    if repeated:  # a still video: every dissimilarity is a tie
        embeddings[1:] = embeddings[0]
    theirs = compute_retention_mask(embeddings.flatten(0, 1), (tubelets, rows, columns), 1, rate)
    assert torch.equal(retention_mask(embeddings, rate).flatten(), theirs)


@pytest.mark.parametrize("rate", [0.0, 0.7, 0.99])
def test_the_first_tubelet_is_always_whole(rate: float) -> None:
    mask = retention_mask(torch.randn(5, 6, 8), rate)
    assert mask[0].all()
    assert mask.sum() == max(6, int(30 * (1 - rate)))
