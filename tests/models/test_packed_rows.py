"""Rows with several sequences, told apart in every way that trainers have: each is scored as if it were alone."""

from typing import Any

import pytest
import torch

from omni_rl.errors import PromptError
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration

LENGTHS = (9, 7)
IDS = torch.randint(40, 300, (1, 16), generator=torch.Generator().manual_seed(3))
POSITIONS = torch.cat([torch.arange(length) for length in LENGTHS])[None]
BOUNDS = torch.tensor([0, 9, 16], dtype=torch.int32)
WAYS: dict[str, dict[str, Any]] = {
    "position_ids": {"position_ids": POSITIONS},
    "one row of position_ids": {"position_ids": POSITIONS[0]},
    "an indexed mask": {"attention_mask": torch.tensor([[1] * 9 + [2] * 7])},
    "cu_seqlens": {"cu_seqlens": BOUNDS},
    "transformers' collator": {
        "position_ids": POSITIONS,
        "cu_seq_lens_q": BOUNDS,
        "cu_seq_lens_k": BOUNDS,
        "max_length_q": 9,
        "max_length_k": 9,
    },
    "seq_idx": {"seq_idx": torch.tensor([[0] * 9 + [1] * 7], dtype=torch.int32)},
}


@pytest.fixture
def alone(omni: NemotronOmniForConditionalGeneration) -> torch.Tensor:
    """The logits of each sequence by itself, one after the other."""
    with torch.no_grad():
        return torch.cat([omni(input_ids=part).logits for part in torch.split(IDS, list(LENGTHS), dim=1)], dim=1)


@pytest.mark.parametrize("way", WAYS)
def test_sequences_of_a_row_do_not_see_each_other(
    omni: NemotronOmniForConditionalGeneration, alone: torch.Tensor, way: str
) -> None:
    with torch.no_grad():
        together = omni(input_ids=IDS, **WAYS[way]).logits
        leaking = omni(input_ids=IDS).logits
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=2e-5)
    assert (leaking - alone).abs().max() > 0.1


def test_packed_rows_may_be_padded_and_their_first_tokens_are_not_labels(
    omni: NemotronOmniForConditionalGeneration, alone: torch.Tensor
) -> None:
    ids = torch.cat([IDS, IDS.new_full((1, 3), 50)], dim=1).repeat(2, 1)
    mask = torch.tensor([[1] * 9 + [2] * 7 + [0] * 3, [1] * 4 + [0] * 15])
    output = omni(input_ids=ids, attention_mask=mask, labels=ids)
    torch.testing.assert_close(output.logits[:1, :16], alone, rtol=1e-5, atol=2e-5)
    scored = alone[0].log_softmax(-1)[[*range(8), *range(9, 15)], IDS[0, [*range(1, 9), *range(10, 16)]]]
    other = omni(input_ids=ids[1:, :4], labels=ids[1:, :4]).loss
    torch.testing.assert_close(output.loss, (-scored.sum() + 3 * other) / (14 + 3), rtol=1e-5, atol=1e-5)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "positions that jump": ({"position_ids": torch.arange(16)[None] * 2}, "sample 0: position_ids is 2 at token 1"),
    "positions that go on": ({"position_ids": torch.arange(5, 21)[None]}, "position_ids is 5 at token 0"),
    "positions of three axes": ({"position_ids": POSITIONS.expand(3, 1, 16)}, "position_ids has the shape"),
    "a sequence in two pieces": ({"attention_mask": torch.tensor([[1] * 4 + [2] * 4 + [1] * 8])}, "earlier sequence"),
    "a mask to be added": ({"attention_mask": torch.full((1, 16), -1e9)}, "other values"),
    "a mask of pairs": ({"attention_mask": torch.ones(1, 1, 16, 16)}, "mask of pairs"),
    "bounds of another batch": ({"cu_seqlens": torch.tensor([0, 9, 17])}, "cu_seqlens go from 0 to 17"),
    "bounds that differ": ({"cu_seq_lens_q": BOUNDS, "cu_seq_lens_k": BOUNDS + 1}, "differs from another"),
    "bounds beside padding": (
        {"cu_seqlens": BOUNDS, "attention_mask": torch.tensor([[1] * 15 + [0]])},
        "without padding",
    ),
    "no token at all": ({"attention_mask": torch.zeros(1, 16, dtype=torch.int64)}, "no tokens"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_tells_no_sequences_apart_is_refused(omni: NemotronOmniForConditionalGeneration, case: str) -> None:
    arguments, reason = REFUSED[case]
    with pytest.raises(PromptError, match=reason):
        omni(input_ids=IDS, **arguments)
