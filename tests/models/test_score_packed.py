"""Scoring a packed batch with media: places, gradients, routing, and what is refused."""

from collections.abc import Callable

import pytest
import torch

from omni_rl.errors import MediaError, PromptError
from omni_rl.kinds import MODALITIES
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.nemotron_omni.features import media_features
from omni_rl.models.nemotron_omni.language.layout import PackedLayout
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.models.packed import PackedMedia, PackedSequences

from .conftest import CONFIG, LANGUAGE
from .resources import Watch

MakeMedia = Callable[..., PackedMedia]


def _batch(lengths: list[int], *media: PackedMedia, seed: int = 0) -> PackedSequences:
    ids = torch.randint(40, 300, (sum(lengths),), generator=torch.Generator().manual_seed(seed))
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    mask = torch.ones(len(ids), dtype=torch.bool)
    mask[cu_seqlens[:-1].long()] = False
    return PackedSequences(ids, cu_seqlens, mask, media)


def test_everything_is_made_where_its_inputs_are(omni: NemotronOmniForConditionalGeneration, media: MakeMedia) -> None:
    """Forward and backward, where a tensor that is made without saying where would be on no device at all."""
    items = (media("image", [3, 4]), media("video", [10, 11, 14, 15], seed=1), media("audio", [21, 22, 23, 24, 25]))
    batch = _batch([30, 12], *items)
    expected = omni.score_packed(batch, temperature=torch.full((40,), 0.7), logprob_chunk=5, record_routing=True)
    gradient = torch.autograd.grad(expected.logprobs.sum(), omni.language_model.lm_head.weight)
    temperature = torch.full((40,), 0.7)
    with torch.device("meta"):
        scores = omni.score_packed(batch, temperature=temperature, logprob_chunk=5, record_routing=True)
        again = torch.autograd.grad(scores.logprobs.sum(), omni.language_model.lm_head.weight)
    assert torch.equal(scores.logprobs, expected.logprobs)
    assert torch.equal(again[0], gradient[0])
    assert scores.experts is not None
    assert expected.experts is not None
    assert torch.equal(scores.experts, expected.experts)


def test_scores_equal_log_softmax_over_embeddings_filled_by_hand(
    omni: NemotronOmniForConditionalGeneration, media: MakeMedia
) -> None:
    items = (
        media("image", [3, 4]),
        media("video", [10, 11, 14, 15], seed=1),
        media("audio", [21, 22, 23, 24, 25], seed=2),
        media("image", [33, 34], seed=3),
    )
    batch = _batch([30, 12], *items)
    with torch.no_grad():
        scores = omni.score_packed(batch, temperature=0.7, logprob_chunk=5)
        embeds = omni.language_model.model.embed_tokens(batch.ids)
        for item, features in zip(items, media_features(omni, items), strict=True):
            for position, feature in zip(item.positions.tolist(), features, strict=True):
                embeds[position] = feature
        logits = omni.language_model(embeds, PackedLayout.of(batch.cu_seqlens)) / 0.7
    scored = batch.score_mask.nonzero()[:, 0]
    expected = logits.log_softmax(-1)[scored - 1].gather(1, batch.ids[scored, None])[:, 0]
    torch.testing.assert_close(scores.logprobs, expected, rtol=1e-5, atol=1e-5)
    assert scores.experts is not None
    assert scores.margins is not None
    assert scores.experts.shape == (42, 2, 2)
    assert scores.margins.shape == (42, 2)


def test_the_order_of_the_items_does_not_matter(omni: NemotronOmniForConditionalGeneration, media: MakeMedia) -> None:
    image, other, sound = media("image", [3, 4]), media("image", [8, 9], seed=1), media("audio", [12, 13, 14, 15, 16])
    with torch.no_grad():
        one = omni.score_packed(_batch([20], image, other, sound)).logprobs
        two = omni.score_packed(_batch([20], sound, other, image)).logprobs
        swapped = omni.score_packed(
            _batch([20], media("image", [8, 9]), media("image", [3, 4], seed=1), sound)
        ).logprobs
    torch.testing.assert_close(one, two)
    assert (one - swapped).abs().max() > 1e-3


def test_a_placeholder_id_outside_of_the_spans_is_an_ordinary_token(
    omni: NemotronOmniForConditionalGeneration, media: MakeMedia
) -> None:
    batch = _batch([20], media("image", [3, 4]))
    for placeholder in (18, 27, 30):
        batch.ids[15] = placeholder
        with torch.no_grad():
            scores = omni.score_packed(batch).logprobs
            embeds = omni.embed_packed(batch.ids, batch.media)
        assert torch.isfinite(scores).all()
        assert torch.equal(embeds[15], omni.language_model.model.embed_tokens.weight[placeholder])


@pytest.mark.parametrize("positions", [[3], [3, 4, 5]])
def test_a_wrong_number_of_places_is_refused_with_sample_modality_and_counts(
    omni: NemotronOmniForConditionalGeneration, media: MakeMedia, positions: list[int]
) -> None:
    with pytest.raises(PromptError, match=rf"sample-7: image has {len(positions)} placeholder tokens and 2 features"):
        omni.score_packed(_batch([20], media("image", positions, seed=7)))


def test_places_outside_of_the_batch_are_refused(omni: NemotronOmniForConditionalGeneration, media: MakeMedia) -> None:
    with pytest.raises(PromptError, match="outside of 20 tokens"):
        omni.score_packed(_batch([20], media("image", [19, 20])))


def test_a_missing_tensor_is_named(omni: NemotronOmniForConditionalGeneration) -> None:
    item = PackedMedia("image", torch.tensor([3, 4]), {"pixels": torch.zeros(3, 32, 64)}, sample="a")
    with pytest.raises(MediaError, match="sample a: image lacks its tensor pixel_values_flat"):
        omni.score_packed(_batch([20], item))


def test_gradients_reach_every_parameter_and_no_placeholder_embedding(
    omni: NemotronOmniForConditionalGeneration, media: MakeMedia
) -> None:
    items = (media("image", [3, 4]), media("video", [10, 11, 14, 15]), media("audio", [21, 22, 23, 24, 25]))
    batch = _batch([30, 100], *items)
    batch.ids[torch.cat([item.positions for item in items])] = 18
    omni.zero_grad()
    torch.autograd.backward(omni.score_packed(batch).logprobs.sum())
    without = [name for name, parameter in omni.named_parameters() if parameter.grad is None]
    zero = [name for name, p in omni.named_parameters() if p.grad is not None and not p.grad.any()]
    embeddings = omni.language_model.model.embed_tokens.weight.grad
    omni.zero_grad()
    assert without == []
    assert zero == []
    assert embeddings is not None
    assert not embeddings[18].any()


def test_routing_is_left_out_when_not_asked_for(omni: NemotronOmniForConditionalGeneration) -> None:
    with torch.no_grad():
        scores = omni.score_packed(_batch([5]), record_routing=False)
    assert scores.experts is None
    assert scores.margins is None


@pytest.mark.parametrize("modality", [*MODALITIES, None])
def test_towers_that_a_batch_does_not_use_get_zero_gradients(
    omni: NemotronOmniForConditionalGeneration, media: MakeMedia, modality: str | None
) -> None:
    """Ranks whose batches differ in media must reduce the same parameters."""
    places = {"image": [3, 4], "video": [3, 4, 5, 6], "audio": [3, 4, 5, 6, 7]}
    items = () if modality is None else (media(modality, places[modality]),)
    omni.zero_grad()
    torch.autograd.backward(omni.score_packed(_batch([20], *items)).logprobs.sum())
    moved = {name for name, p in omni.named_parameters() if p.grad is not None and p.grad.any()}
    without = [name for name, p in omni.named_parameters() if p.grad is None]
    omni.zero_grad()
    assert without == []
    assert any(name.startswith("sound_encoder.") for name in moved) == (modality == "audio")
    assert any(name.startswith("vision_projector.") for name in moved) == (modality in ("image", "video"))
    assert ("vision_model.embeddings.patch_projection.weight" in moved) == (modality == "image")
    assert ("vision_model.embeddings.video_patch_projection.weight" in moved) == (modality == "video")


class _Adapted(torch.nn.Module):
    """A head with a low-rank adapter beside it, as PEFT makes it."""

    def __init__(self, head: torch.nn.Linear) -> None:
        super().__init__()
        self.head = head
        self.adapter = torch.nn.Sequential(
            torch.nn.Linear(head.in_features, 4, bias=False), torch.nn.Linear(4, head.out_features, bias=False)
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(hidden) + self.adapter(hidden)
        return logits


@pytest.mark.slow
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("learning", [False, True])
def test_32768_tokens_are_scored_in_bounded_memory(learning: bool, adapted: bool) -> None:
    """Their logits would take 2.1 GB, and as much again each thing that is computed from them."""
    vocabulary, lengths = 16384, [1024] * 32
    language = LANGUAGE | {"vocab_size": vocabulary, "hybrid_override_pattern": "M"}
    model = NemotronOmniForConditionalGeneration(NemotronOmniConfig(**CONFIG | {"llm_config": language}))
    if adapted:
        model.set_output_embeddings(_Adapted(model.lm_head))  # type: ignore[arg-type]
    ids = torch.randint(40, vocabulary, (sum(lengths),))
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    mask = torch.ones(len(ids), dtype=torch.bool)
    mask[bounds[:-1]] = False
    batch = PackedSequences(ids, bounds.int(), mask)
    with Watch() as watch, torch.set_grad_enabled(learning):
        logprobs = model.score_packed(batch, logprob_chunk=512).logprobs
        if learning:
            torch.autograd.backward(logprobs.sum())
    assert len(logprobs) == 32768 - len(lengths)
    assert torch.isfinite(logprobs).all()
    assert watch.peak < (500 if learning else 250) * 10**6
