"""`forward` on padded batches: media by plain arguments or spans, loss, kept logits, hidden states."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHMamba2Mixer
from transformers.models.nemotron_h_omni import NemotronH_Omni_Reasoning_V3, NemotronH_Omni_Reasoning_V3_Config

from omni_rl.errors import ConfigError, MediaError
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.models.packed import PackedMedia, PackedSequences

from .conftest import CONFIG, LANGUAGE

IMAGE, SOUND = 18, 27
MakeMedia = Callable[..., PackedMedia]


def _ids(rows: int, length: int, slots: dict[int, list[tuple[int, int]]] | None = None) -> torch.Tensor:
    """Random ids with placeholder ids at (row, position)."""
    ids = torch.randint(40, 300, (rows, length), generator=torch.Generator().manual_seed(length))
    for placeholder, places in (slots or {}).items():
        for row, position in places:
            ids[row, position] = placeholder
    return ids


def _padded(images: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch padded with values that would show, and the sizes."""
    sizes = torch.tensor([image.shape[-2:] for image in images])
    batch = torch.full((len(images), 3, int(sizes[:, 0].max()), int(sizes[:, 1].max())), 1e4)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return batch, sizes


@pytest.fixture(scope="module")
def reference(omni: NemotronOmniForConditionalGeneration, saved: Path) -> NemotronH_Omni_Reasoning_V3:
    """transformers' own Omni, loaded from the checkpoint that ours wrote."""
    vision = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 16}
    vision |= {"max_img_size": 256, "num_cls_tokens": 2, "num_registers": 6, "video_temporal_patch_size": 2}
    config = NemotronH_Omni_Reasoning_V3_Config(
        vision_config=vision,
        text_config=dict(LANGUAGE),
        audio_config=dict(CONFIG["sound_config"]),
        force_image_size=64,
        projector_hidden_size=80,
        vision_hidden_size=64,
        video_temporal_patch_size=2,
        image_token_id=IMAGE,
        audio_token_id=SOUND,
    )
    model = NemotronH_Omni_Reasoning_V3.from_pretrained(
        saved, config=config, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    for module in model.modules():
        if isinstance(module, NemotronHMamba2Mixer):
            module.time_step_limit = (0.0, float("inf"))
    return model


def test_an_image_prompt_equals_transformers(
    omni: NemotronOmniForConditionalGeneration, reference: NemotronH_Omni_Reasoning_V3
) -> None:
    images = [torch.randn(3, 32, 64), torch.randn(3, 96, 64)]
    ids = _ids(1, 30, {IMAGE: [(0, 3), (0, 4)] + [(0, position) for position in range(10, 16)]})
    pixels, sizes = _padded(images)
    patches = torch.cat(
        [i.reshape(3, i.shape[1] // 16, 16, -1, 16).permute(1, 3, 0, 2, 4).reshape(-1, 768) for i in images]
    )
    with torch.no_grad():
        mine = omni(input_ids=ids, pixel_values=pixels, imgs_sizes=sizes).logits.log_softmax(-1)
        theirs = reference(input_ids=ids, pixel_values=patches, image_grid_hw=sizes // 16, use_cache=False)
    difference = (mine - theirs.logits.log_softmax(-1)).abs()
    assert difference.mean() < 1e-5
    assert difference.max() < 1e-4


def test_plain_arguments_and_spans_agree_with_packed_scoring(
    omni: NemotronOmniForConditionalGeneration, media: MakeMedia
) -> None:
    image, sound = media("image", [3, 4]), media("audio", [30, 31, 32, 33, 34], seed=2)
    ids = _ids(2, 20, {IMAGE: [(0, 3), (0, 4)], SOUND: [(1, position) for position in range(10, 15)]})
    pixels, sizes = _padded([image.tensors["pixel_values_flat"]])
    with torch.no_grad():
        plain = omni(
            input_ids=ids,
            pixel_values=pixels,
            imgs_sizes=sizes,
            sound_features=sound.tensors["input_audio_features"],
            sound_attention_mask=sound.tensors["feature_attention_mask"],
        ).logits
        spans = omni(input_ids=ids, media=(image, sound)).logits
        mask = (torch.arange(20) > 0).repeat(2)
        batch = PackedSequences(ids.flatten(), torch.tensor([0, 20, 40]), mask, (image, sound))
        scored = omni.score_packed(batch).logprobs
    torch.testing.assert_close(plain, spans, rtol=1e-5, atol=1e-5)
    expected = plain[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).flatten()
    torch.testing.assert_close(scored, expected, rtol=1e-5, atol=2e-5)


def test_image_sound_and_video_may_stand_in_one_prompt_with_spans_only(
    omni: NemotronOmniForConditionalGeneration, media: MakeMedia
) -> None:
    ids = _ids(1, 30)
    items = (media("image", [3, 4]), media("video", [10, 11, 13, 14], seed=1), media("audio", [20, 21, 22, 23, 24]))
    with torch.no_grad():
        assert torch.isfinite(omni(input_ids=ids, media=items).logits).all()
    with pytest.raises(ValueError, match="spans"):
        omni(input_ids=ids, pixel_values=torch.randn(1, 3, 64, 64), pixel_values_videos=torch.randn(2, 3, 64, 64))


def test_padding_on_the_right_changes_nothing_and_other_padding_is_refused(
    omni: NemotronOmniForConditionalGeneration,
) -> None:
    ids = _ids(3, 12)
    lengths = [12, 5, 1]
    mask = torch.arange(12) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        padded = omni(input_ids=ids, attention_mask=mask.long()).logits
        for row, length in enumerate(lengths):
            alone = omni(input_ids=ids[row : row + 1, :length]).logits[0]
            torch.testing.assert_close(padded[row, :length], alone, rtol=1e-5, atol=2e-5)
    with pytest.raises(ValueError, match="sample 1 is padded on the left"):
        omni(input_ids=ids, attention_mask=torch.stack([mask[0], mask[1].flip(0), mask[2]]))
    holes = mask.clone()
    holes[0, 4] = False
    with pytest.raises(ValueError, match="sample 0 has holes"):
        omni(input_ids=ids, attention_mask=holes)


def test_tiles_flags_and_their_counts(omni: NemotronOmniForConditionalGeneration) -> None:
    tiles = torch.randn(3, 3, 64, 64)
    places = [(0, position) for position in range(2, 10)]
    ids = _ids(1, 20, {IMAGE: places})
    with torch.no_grad():
        features = omni.extract_feature(tiles)
        assert features.shape == (3, 4, 64)
        flagged = omni.prepare_inputs_embeds_for_cp(ids, tiles, image_flags=torch.tensor([[1], [0], [1]]))
        ones = omni.prepare_inputs_embeds_for_cp(ids, tiles[:2])
    torch.testing.assert_close(flagged[0, 2:10], features[[0, 2]].flatten(0, 1))
    torch.testing.assert_close(ones[0, 2:10], features[:2].flatten(0, 1))
    with pytest.raises(MediaError, match="2 entries for 3 tiles"):
        omni(input_ids=ids, pixel_values=tiles, image_flags=torch.ones(2, 1))


def test_counts_are_checked_sample_by_sample(omni: NemotronOmniForConditionalGeneration) -> None:
    """Two tiles of four tokens each; a sum that fits does not save a sample that does not."""
    tiles = torch.randn(2, 3, 64, 64)
    crossed = _ids(2, 20, {IMAGE: [(0, p) for p in range(3, 9)] + [(1, 3), (1, 4)]})
    with pytest.raises(ValueError, match="sample 0: image has 6 placeholder tokens and 8 features"):
        omni(input_ids=crossed, pixel_values=tiles)
    missing = _ids(2, 20, {IMAGE: [(row, p) for row in (0, 1) for p in range(3, 8 + row)]})
    with pytest.raises(ValueError, match="sample 0: image has 5 placeholder tokens and 8 features"):
        omni(input_ids=missing, pixel_values=tiles)
    surplus = _ids(2, 20, {IMAGE: [(0, p) for p in range(3, 7)]})
    with pytest.raises(ValueError, match="sample 1: image has 0 placeholder tokens and 4 features"):
        omni(input_ids=surplus, pixel_values=tiles)


def test_sizes_that_do_not_fit_name_the_image(omni: NemotronOmniForConditionalGeneration) -> None:
    pixels = torch.randn(2, 3, 64, 64)
    with pytest.raises(ValueError, match="image 1 has no counterpart"):
        omni.extract_feature_dynamic(pixels, [(32, 32)])
    with pytest.raises(ValueError, match="image 1 is said to be 96 x 32"):
        omni.extract_feature_dynamic(pixels, [(32, 32), (96, 32)])
    with pytest.raises(ValueError, match="image 0 is 40 x 32"):
        omni.extract_feature_dynamic(pixels, [(40, 32), (32, 32)])


def test_dynamic_resolution_is_one_sequence_of_all_images_and_padding_never_matters(
    omni: NemotronOmniForConditionalGeneration,
) -> None:
    images = [torch.randn(3, 32, 64), torch.randn(3, 96, 32)]
    pixels, sizes = _padded(images)
    with torch.no_grad():
        together = omni.extract_feature_dynamic(pixels, sizes)
        alone = [omni.extract_feature(image[None]) for image in images]
    assert together.shape == (1, 5, 64)
    torch.testing.assert_close(together, torch.cat([rows.flatten(0, 1) for rows in alone])[None], rtol=1e-5, atol=1e-5)


def test_extraction_restores_the_towers_mode_even_if_it_raises(omni: NemotronOmniForConditionalGeneration) -> None:
    omni.train()
    with pytest.raises(MediaError):
        omni.extract_feature(torch.randn(1, 3, 40, 40))
    assert omni.vision_model.training
    omni.eval()


def test_embedding_first_and_running_then_equals_one_forward(omni: NemotronOmniForConditionalGeneration) -> None:
    ids = _ids(1, 20, {IMAGE: [(0, position) for position in range(2, 6)]})
    video = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        whole = omni(input_ids=ids, pixel_values_videos=video).logits
        prepared = omni.prepare_model_inputs_for_cp(ids, pixel_values_videos=video)
        early = omni(input_ids=ids, pixel_values_videos=video, _pre_embed_only=True)
        assert early.keys() == prepared.keys() == {"inputs_embeds"}
        assert torch.equal(early["inputs_embeds"], prepared["inputs_embeds"])
        assert torch.equal(omni(**prepared).logits, whole)


def test_loss_is_the_mean_cross_entropy_of_shifted_labels(omni: NemotronOmniForConditionalGeneration) -> None:
    ids = _ids(2, 15)
    labels = ids.clone()
    labels[0, :7] = -100
    labels[1, 9] = -100
    output = omni(input_ids=ids, labels=labels)
    expected = torch.nn.functional.cross_entropy(
        output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    torch.testing.assert_close(output.loss, expected)
    nothing = omni(input_ids=ids, labels=torch.full_like(ids, -100)).loss
    assert nothing.item() == 0
    assert nothing.requires_grad


def test_kept_logits_hidden_states_and_tuples(omni: NemotronOmniForConditionalGeneration) -> None:
    ids = _ids(2, 10)
    with torch.no_grad():
        whole = omni(input_ids=ids, output_hidden_states=True)
        last = omni(input_ids=ids, logits_to_keep=3)
        some = omni(input_ids=ids, logits_to_keep=torch.tensor([1, 4]))
        as_tuple = omni(input_ids=ids, return_dict=False)
        head = omni.get_output_embeddings()(whole.hidden_states[-1])
    assert last.hidden_states is None
    torch.testing.assert_close(last.logits, whole.logits[:, -3:])
    torch.testing.assert_close(some.logits, whole.logits[:, [1, 4]])
    torch.testing.assert_close(as_tuple[0], whole.logits)
    torch.testing.assert_close(head, whole.logits)


def test_gradient_checkpointing_changes_no_gradient(
    omni: NemotronOmniForConditionalGeneration, media: MakeMedia
) -> None:
    ids = _ids(1, 20)
    omni.train()

    def gradients() -> dict[str, torch.Tensor]:
        omni.zero_grad()
        torch.autograd.backward(omni(input_ids=ids, labels=ids, media=(media("image", [3, 4]),)).loss)
        return {name: p.grad.clone() for name, p in omni.named_parameters() if p.grad is not None}

    plain = gradients()
    omni.gradient_checkpointing_enable()
    recomputed = gradients()
    omni.gradient_checkpointing_disable()
    omni.zero_grad()
    omni.eval()
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-5, atol=1e-6)


def test_checkpointing_reaches_every_block_and_both_towers(config: NemotronOmniConfig, media: MakeMedia) -> None:
    """What is kept from forward to backward shrinks; the towers are in eval, where transformers' own keep all."""
    model = NemotronOmniForConditionalGeneration(config).eval()
    ids = _ids(1, 40)
    items = (media("image", [3, 4]), media("audio", [10, 11, 12, 13, 14]))

    def kept() -> int:
        sizes: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = model(input_ids=ids, labels=ids, media=items).loss
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        torch.autograd.backward(loss)
        return sum(size for pointer, size in sizes.items() if pointer not in own)

    everything = kept()
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    layers = [*model.language_model.model.layers, *model.vision_model.encoder.layer]
    assert model.sound_encoder is not None
    layers += model.sound_encoder.layers
    calls = dict.fromkeys(layers, 0)
    for layer in layers:
        layer.register_forward_pre_hook(lambda module, given: calls.update({module: calls[module] + 1}))
    assert kept() < everything / 2
    assert set(calls.values()) == {2}
    model.gradient_checkpointing_enable(every_n_layers=2)
    assert [layer.recomputed for layer in model.language_model.model.layers] == [True, False] * 3
    with pytest.raises(ConfigError, match="offload"):
        model.gradient_checkpointing_enable(offload=True)


def test_tiles_of_several_sizes_come_in_a_list(omni: NemotronOmniForConditionalGeneration) -> None:
    tiles = [torch.randn(3, 64, 64), torch.randn(3, 32, 64), torch.randn(2, 3, 64, 64)]
    with torch.no_grad():
        found = omni.extract_feature(tiles)
        for number, tile in enumerate(tiles):
            alone = omni.extract_feature(tile if tile.ndim == 4 else tile[None])
            torch.testing.assert_close(found[number], alone, rtol=1e-5, atol=1e-5)
        ids = _ids(1, 20)
        ids[0, 2 : 2 + 4 + 8] = omni.img_context_token_id
        flags = torch.tensor([1, 0, 1])
        listed = omni(input_ids=ids, pixel_values=tiles, image_flags=flags, _pre_embed_only=True)["inputs_embeds"]
        expected = torch.cat([found[0].flatten(0, 1), found[2].flatten(0, 1)])
    torch.testing.assert_close(listed[0, 2:14], expected)


def test_what_overrides_a_public_method_is_what_forward_calls(config: NemotronOmniConfig) -> None:
    class Doubled(NemotronOmniForConditionalGeneration):
        def extract_feature(self, pixel_values: Any) -> Any:
            return 2 * super().extract_feature(pixel_values)

        def extract_feature_dynamic(self, pixel_values: Any, imgs_sizes: Any) -> torch.Tensor:
            return 2 * super().extract_feature_dynamic(pixel_values, imgs_sizes)

        def extract_video_feature(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
            return 2 * super().extract_video_feature(pixel_values_videos)

        def extract_sound_feature(self, input_features: torch.Tensor, attention_mask: Any = None) -> torch.Tensor:
            return 2 * super().extract_sound_feature(input_features, attention_mask)

    plain = NemotronOmniForConditionalGeneration(config)
    doubled = Doubled(config)
    doubled.load_state_dict(plain.state_dict())
    image, sound = plain.img_context_token_id, plain.sound_context_token_id
    pixels = torch.randn(1, 3, 64, 64)
    cases: list[tuple[int, int, dict[str, Any]]] = [
        (image, 4, {"pixel_values": pixels}),
        (image, 2, {"pixel_values": pixels, "imgs_sizes": [(32, 64)]}),
        (image, 4, {"pixel_values_videos": torch.randn(2, 3, 64, 64)}),
        (sound, 5, {"sound_features": torch.randn(1, 40, 16)}),
    ]
    for placeholder, count, arguments in cases:
        ids = _ids(1, 12)
        ids[0, 1 : 1 + count] = placeholder
        with torch.no_grad():
            once, twice = (
                model(input_ids=ids, _pre_embed_only=True, **arguments)["inputs_embeds"] for model in (plain, doubled)
            )
        torch.testing.assert_close(twice[0, 1 : 1 + count], 2 * once[0, 1 : 1 + count])
        torch.testing.assert_close(twice[0, 1 + count :], once[0, 1 + count :])


def test_a_batch_prepared_for_context_parallelism_may_be_a_mapping(
    omni: NemotronOmniForConditionalGeneration,
) -> None:
    ids = _ids(1, 12)
    ids[0, 1:5] = omni.img_context_token_id
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        given = omni.prepare_model_inputs_for_cp(
            {"input_ids": ids, "pixel_values": pixels, "labels": ids}, num_chunks=2
        )
        expected = omni.prepare_model_inputs_for_cp(ids, pixels)
    assert given.keys() == expected.keys()
    assert torch.equal(given["inputs_embeds"], expected["inputs_embeds"])


def test_the_loss_of_a_part_is_its_share_of_all_items(omni: NemotronOmniForConditionalGeneration) -> None:
    ids = _ids(4, 15)
    with torch.no_grad():
        whole = omni(input_ids=ids, labels=ids).loss
        parts = [omni(input_ids=part, labels=part, num_items_in_batch=4 * 14).loss for part in torch.split(ids, 1)]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


def test_caches_are_refused(omni: NemotronOmniForConditionalGeneration) -> None:
    with pytest.raises(ConfigError, match="cache"):
        omni(input_ids=_ids(1, 3), past_key_values=[])
    with pytest.raises(ConfigError, match="input_ids"):
        omni()
