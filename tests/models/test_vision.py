"""The vision path against transformers' own RADIO, image by image, and against the definition of tubelets."""

import pytest
import torch
from einops import rearrange
from transformers import RadioModel

from omni_rl.errors import ConfigError, MediaError
from omni_rl.models.nemotron_omni import vision
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.nemotron_omni.features import image_embeddings, video_embeddings
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration

from .conftest import CONFIG


@pytest.fixture(scope="module")
def reference(omni: NemotronOmniForConditionalGeneration) -> RadioModel:
    """transformers' model with separate query, key and value, the same weights, and no normalisation."""
    model = RadioModel(vision.radio_config(omni.config)).eval()
    state = {}
    for name, tensor in omni.vision_model.state_dict().items():
        if ".attention.qkv." in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                state[name.replace(".qkv.", f".{letter}_proj.")] = part
        else:
            state[name.replace(".attention.proj.", ".attention.o_proj.")] = tensor
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("layer_scale" in name or "conditioner" in name or "summary" in name for name in missing)
    model.make_preprocessor_external()
    return model


def _relative(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    assert mine.shape == theirs.shape
    return float((mine - theirs).norm() / theirs.norm())


def test_images_packed_equal_transformers_one_by_one(
    omni: NemotronOmniForConditionalGeneration, reference: RadioModel
) -> None:
    images = [torch.randn(3, height, width) for height, width in [(32, 64), (96, 32), (160, 320), (32, 64)]]
    with torch.no_grad():
        packed = vision.image_features(omni.vision_model, images)
        for image, mine in zip(images, packed, strict=True):
            assert _relative(mine, reference(image[None]).features[0]) < 1e-5


def test_an_image_is_normalised_by_the_tiler_only(omni: NemotronOmniForConditionalGeneration) -> None:
    """Shifting and scaling the pixels as the conditioner would must change the features."""
    image = torch.randn(3, 32, 32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (omni.config.norm_mean, omni.config.norm_std))
    with torch.no_grad():
        plain, twice = vision.image_features(omni.vision_model, [image, (image - mean) / std])
    assert _relative(twice, plain) > 0.1


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_video_stacks_frames_in_the_order_frame_channel_row_column(
    omni: NemotronOmniForConditionalGeneration, reference: RadioModel, frames: int
) -> None:
    video = torch.randn(frames, 3, 32, 64)
    padded = torch.cat([video, video[-1:]]) if frames % 2 else video
    patches = rearrange(padded, "(n t) c (h y) (w x) -> n (h w) (t c y x)", t=2, y=16, x=16)
    embeddings = reference.embeddings
    with torch.no_grad():
        embedded = patches @ embeddings.video_patch_projection.weight.T
        embedded = embedded + embeddings._interpolate_position_embedding((2, 4), torch.float32)
        prefix = embeddings.cls_register_token.expand(len(patches), -1, -1)
        expected = reference.encoder(torch.cat([prefix, embedded], 1)).last_hidden_state[:, prefix.shape[1] :]
        mine = vision.video_features(omni.vision_model, video)
    assert _relative(mine, expected) < 1e-5


def test_embeddings_have_the_prompts_shape(omni: NemotronOmniForConditionalGeneration) -> None:
    with torch.no_grad():
        small, large = image_embeddings(omni, [torch.randn(3, 32, 64), torch.randn(3, 64, 96)])
        video = video_embeddings(omni, torch.randn(5, 3, 64, 96))
    assert small.shape == (2, 64)
    assert large.shape == (6, 64)
    assert video.shape == (3, 6, 64)


def test_prefix_tokens_follow_the_register_rule(omni: NemotronOmniForConditionalGeneration) -> None:
    """Two teachers: two class tokens, and registers up to the multiple of eight."""
    assert omni.vision_model.config.num_cls_tokens == 2
    assert omni.vision_model.config.num_registers == 6


def test_a_side_that_is_no_multiple_of_the_patch_is_refused_by_number(
    omni: NemotronOmniForConditionalGeneration,
) -> None:
    with pytest.raises(MediaError, match="image 1 is 32 x 40"):
        image_embeddings(omni, [torch.randn(3, 32, 32), torch.randn(3, 32, 40)])


def test_an_unknown_size_or_a_wrong_width_is_refused_by_name() -> None:
    section = CONFIG["vision_config"]
    args = section["args"]
    unknown = NemotronOmniConfig(**(CONFIG | {"vision_config": section | {"args": args | {"model": "vit_nobody"}}}))
    with pytest.raises(ConfigError, match="vit_nobody"):
        vision.radio_config(unknown)
    with pytest.raises(ConfigError, match="vit_hidden_size is 32"):
        vision.radio_config(NemotronOmniConfig(**(CONFIG | {"vit_hidden_size": 32})))
