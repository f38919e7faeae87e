"""Pruned videos in the training copy: the embedded sequence, written out by hand, its gradients and what is refused."""

from dataclasses import replace

import pytest
import torch

from omni_rl.errors import PromptError
from omni_rl.models.nemotron_omni.features import video_embeddings
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.models.packed import PackedMedia, PackedPruning, PackedSequences

PLACEHOLDER = 18
START = 5  # where the video's span begins in the packed ids
STAMPS = ([101, 102, 50], [103, 50], [104, 105, 106, 50])  # each tubelet's text before its features
CLOSE = 51  # and behind them
KEPT = torch.tensor([[True] * 4, [False, True, False, False], [True, False, False, True]])
RATE = 0.4  # of 3 tubelets of 4 tokens 7 stay


def _video(seed: int = 0) -> torch.Tensor:
    """Five frames of 64 x 64 pixels: three tubelets of four tokens."""
    return torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def _ids() -> torch.Tensor:
    """As the engine's front end writes a pruned video: all slots in the first tubelet."""
    slots = [[PLACEHOLDER] * 7, [], []]
    span = [token for stamp, own in zip(STAMPS, slots, strict=True) for token in (*stamp, *own, CLOSE)]
    return torch.tensor([*range(200, 200 + START), *span, 210, 211, 212])


def _item(kept: torch.Tensor | None, seed: int = 0) -> PackedMedia:
    length = 7 + sum(len(stamp) + 1 for stamp in STAMPS)
    pruning = PackedPruning(RATE, (START, START + length), torch.tensor([3, 6, 11]), kept)
    positions = START + 3 + torch.arange(7)
    return PackedMedia("video", positions, {"pixel_values_flat_video": _video(seed)}, "a", pruning)


def _by_hand(model: NemotronOmniForConditionalGeneration, kept: torch.Tensor) -> torch.Tensor:
    table = model.language_model.model.embed_tokens.weight
    features = video_embeddings(model, _video())
    rows = [table[token] for token in range(200, 200 + START)]
    for stamp, tubelet, stays in zip(STAMPS, features, kept, strict=True):
        rows += [table[token] for token in stamp]
        rows += [feature for feature, stay in zip(tubelet, stays, strict=True) if stay]
        rows.append(table[CLOSE])
    return torch.stack([*rows, table[210], table[211], table[212]])


def test_each_tubelets_kept_features_stand_behind_its_own_text(omni: NemotronOmniForConditionalGeneration) -> None:
    with torch.no_grad():
        embeds = omni.embed_packed(_ids(), [_item(KEPT)])
        assert torch.equal(embeds, _by_hand(omni, KEPT))


def test_without_the_engines_choice_the_features_decide(omni: NemotronOmniForConditionalGeneration) -> None:
    with torch.no_grad():
        features = video_embeddings(omni, _video())
        similarity = torch.stack([torch.cosine_similarity(features[i], features[i - 1], dim=-1) for i in (1, 2)])
        least_alike = similarity.flatten().argsort()[:3]
        expected = torch.zeros(2, 4, dtype=torch.bool)
        expected.view(-1)[least_alike] = True
        expected = torch.cat([torch.ones(1, 4, dtype=torch.bool), expected])
        batch = PackedSequences(_ids(), torch.tensor([0, len(_ids())]), torch.arange(len(_ids())) > 25, (_item(None),))
        (kept,) = omni.score_packed(batch).kept
        assert torch.equal(omni.embed_packed(_ids(), [_item(None)]), _by_hand(omni, expected))
    assert kept is not None
    assert torch.equal(kept, expected)


def test_the_policys_own_choice_is_told_beside_the_one_that_it_follows(
    omni: NemotronOmniForConditionalGeneration,
) -> None:
    batch = PackedSequences(_ids(), torch.tensor([0, len(_ids())]), torch.arange(len(_ids())) > 25, (_item(None),))
    with torch.no_grad():
        (own,) = omni.score_packed(batch).kept
        assert own is not None
        other = own.clone()
        other[1:] = own[1:].flip(0, 1)
        assert not torch.equal(other, own)
        replayed = omni.score_packed(replace(batch, media=(_item(other),)))
    assert torch.equal(replayed.kept[0], own)  # type: ignore[arg-type]
    assert (replayed.logprobs - omni.score_packed(batch).logprobs).abs().max() > 1e-4


def test_the_padded_forward_prunes_as_the_packed_one(omni: NemotronOmniForConditionalGeneration) -> None:
    ids = _ids()
    second = _item(KEPT)
    assert second.pruning is not None
    start, end = second.pruning.span
    shift = len(ids)
    second = replace(
        second,
        positions=second.positions + shift,
        pruning=replace(second.pruning, span=(start + shift, end + shift)),
    )
    with torch.no_grad():
        out = omni(input_ids=torch.stack([ids, ids]), media=[_item(KEPT), second], _pre_embed_only=True)
        assert torch.equal(out["inputs_embeds"][0], _by_hand(omni, KEPT))
        assert torch.equal(out["inputs_embeds"][1], _by_hand(omni, KEPT))


def test_only_kept_features_and_the_moved_text_get_a_gradient(omni: NemotronOmniForConditionalGeneration) -> None:
    omni.zero_grad()
    weights = torch.randn(len(_ids()), 64, generator=torch.Generator().manual_seed(1))
    torch.autograd.backward((omni.embed_packed(_ids(), [_item(KEPT)]) * weights).sum())
    table = omni.language_model.model.embed_tokens.weight.grad
    ours = {name: p.grad.clone() for name, p in omni.named_parameters() if p.grad is not None and p.grad.any()}
    omni.zero_grad()
    torch.autograd.backward((_by_hand(omni, KEPT) * weights).sum())
    by_hand = {name: p.grad.clone() for name, p in omni.named_parameters() if p.grad is not None and p.grad.any()}
    omni.zero_grad()
    assert table is not None
    assert not table[PLACEHOLDER].any()
    assert any(name.startswith("vision_projector") for name in ours)
    assert ours.keys() == by_hand.keys()
    for name, grad in ours.items():
        torch.testing.assert_close(grad, by_hand[name], rtol=1e-5, atol=1e-6, msg=name)


def test_a_choice_that_does_not_fit_is_refused_by_sample(omni: NemotronOmniForConditionalGeneration) -> None:
    one_more = KEPT.clone()
    one_more[2] = True
    with pytest.raises(PromptError, match="sample a: video has 7 placeholder tokens and 9 kept features"):
        omni.embed_packed(_ids(), [_item(one_more)])
    with pytest.raises(PromptError, match=r"sample a: the engine kept tokens of \[2, 4\]"):
        omni.embed_packed(_ids(), [_item(KEPT[:2])])
