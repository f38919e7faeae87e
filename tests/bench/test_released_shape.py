"""The public 30B-A3B Omni, on the meta device."""

import pytest

from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl_bench.gpu import released_shape


@pytest.fixture(scope="module")
def released() -> NemotronOmniForConditionalGeneration:
    return released_shape.build()


def test_it_takes_no_memory_and_has_the_published_size(released: NemotronOmniForConditionalGeneration) -> None:
    assert all(tensor.is_meta for tensor in released.state_dict().values())
    by_part = released_shape.parameters_by_part(released)
    assert by_part["language_model"] == 31_577_937_344
    assert 0.60e9 < by_part["vision_model"] < 0.66e9  # RADIO ViT-H
    assert 0.59e9 < by_part["sound_encoder"] < 0.62e9  # Parakeet 0.6B
    assert sum(by_part.values()) == sum(parameter.numel() for parameter in released.parameters())


def test_its_released_names_are_as_many_as_the_published_checkpoint_holds(
    released: NemotronOmniForConditionalGeneration,
) -> None:
    """The public checkpoint has 7,349 tensors, 5,888 of them routed experts; four are derived: the input conditioner's
    mean and deviation, the mel filter bank and its window."""
    names = dict(released_shape.released_names(released))
    assert len(names) == 7349 - 4
    assert sum(".mixer.experts." in name for name in names) == 5888
    assert names["language_model.backbone.layers.0.mixer.in_proj.weight"] == (10304, 2688)
    assert names["language_model.backbone.layers.1.mixer.experts.127.up_proj.weight"] == (1856, 2688)
    assert names["vision_model.radio_model.model.patch_generator.cls_token.token"] == (10, 1280)
    assert names["vision_model.radio_model.model.patch_generator.pos_embed"] == (1, 16384, 1280)
    assert names["vision_model.radio_model.model.patch_generator.video_embedder.weight"] == (1280, 1536)
    assert "sound_encoder.encoder.layers.0.conv.depthwise_conv.bias" not in names


def test_more_gpus_share_the_state_but_not_the_gathered_units(released: NemotronOmniForConditionalGeneration) -> None:
    eight, sixteen = released_shape.memory(released, 8), released_shape.memory(released, 16)
    parameters = sum(parameter.numel() for parameter in released.parameters())
    assert eight.state * 2**30 * 8 == pytest.approx(parameters * 16)
    assert sixteen.state == pytest.approx(eight.state / 2)
    assert (sixteen.root, sixteen.blocks) == (eight.root, eight.blocks)
