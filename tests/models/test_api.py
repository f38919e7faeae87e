"""The public names, parameters and defaults that users of the original model rely on."""

import inspect
import logging
from typing import Any

import pytest
import torch
from torch import nn

from omni_rl.errors import ConfigError
from omni_rl.models.nemotron_omni import model as page
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration

from .conftest import CONFIG

NONE_SINCE_PIXELS = {
    "pixel_values": None,
    "image_flags": None,
    "imgs_sizes": None,
    "pixel_values_videos": None,
    "sound_features": None,
    "sound_attention_mask": None,
}
REQUIRED = inspect.Parameter.empty

SIGNATURES: dict[str, dict[str, Any]] = {
    "_make_missing_buffers_non_persistent": {"module": REQUIRED},
    "_pixel_shuffle_dynamic_res": {"x": REQUIRED, "imgs_sizes": REQUIRED},
    "extract_feature": {"pixel_values": REQUIRED},
    "extract_feature_dynamic": {"pixel_values": REQUIRED, "imgs_sizes": REQUIRED},
    "extract_sound_feature": {"input_features": REQUIRED, "attention_mask": None},
    "extract_video_feature": {"pixel_values_videos": REQUIRED},
    "forward": {
        "pixel_values": None,
        "input_ids": None,
        "attention_mask": None,
        "position_ids": None,
        "image_flags": None,
        "imgs_sizes": None,
        "past_key_values": None,
        "labels": None,
        "sound_features": None,
        "sound_attention_mask": None,
        "pixel_values_videos": None,
        "inputs_embeds": None,
        "use_cache": None,
        "output_attentions": None,
        "output_hidden_states": None,
        "return_dict": None,
        "logits_to_keep": 0,
        "_pre_embed_only": False,
        "kwargs": REQUIRED,
    },
    "from_config": {"config": REQUIRED, "backend": None, "kwargs": REQUIRED},
    "from_pretrained": {"pretrained_model_name_or_path": REQUIRED, "model_args": REQUIRED, "kwargs": REQUIRED},
    "get_input_embeddings": {},
    "get_output_embeddings": {},
    "initialize_weights": {"buffer_device": None, "dtype": torch.bfloat16},
    "pixel_shuffle": {"x": REQUIRED, "scale_factor": 0.5},
    "prepare_inputs_embeds_for_cp": {"input_ids": REQUIRED, **NONE_SINCE_PIXELS},
    "prepare_model_inputs_for_cp": {"input_ids": REQUIRED, **NONE_SINCE_PIXELS},
    "set_input_embeddings": {"value": REQUIRED},
    "set_output_embeddings": {"new_embeddings": REQUIRED},
    "prepare_for_grad_accumulation": {"pp_enabled": False},
    "prepare_for_final_backward": {"pp_enabled": False},
}


def _parameters(function: Any) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name != "self"}


@pytest.mark.parametrize("name", SIGNATURES)
def test_methods_have_the_pages_parameters_in_order(name: str) -> None:
    method = getattr(NemotronOmniForConditionalGeneration, name)
    # What newer callers give besides comes by its name alone, and may be left out.
    newer = [n for n, one in inspect.signature(method).parameters.items() if one.kind is one.KEYWORD_ONLY]
    found = {n: default for n, default in _parameters(method).items() if n in SIGNATURES[name] or n not in newer}
    assert list(found.items()) == list(SIGNATURES[name].items())
    assert all(_parameters(method)[n] is not REQUIRED for n in newer)


def test_constructors_have_the_pages_parameters() -> None:
    assert _parameters(page.NemotronOmniForConditionalGeneration) == {
        "config": REQUIRED,
        "backend": None,
        "kwargs": REQUIRED,
    }
    assert _parameters(page.RMSNorm) == {"hidden_size": REQUIRED, "eps": 1e-5}
    assert _parameters(page.VisionProjector) == {
        "vit_hidden_size": REQUIRED,
        "projector_hidden_size": REQUIRED,
        "llm_hidden_size": REQUIRED,
        "downsample_ratio": 0.5,
    }
    assert _parameters(page.SoundProjection) == {
        "sound_hidden_size": REQUIRED,
        "projection_hidden_size": REQUIRED,
        "llm_hidden_size": REQUIRED,
        "bias": False,
    }
    assert _parameters(page._ModelProxy) == {"llm": REQUIRED}


def test_the_configurations_defaults_are_the_pages() -> None:
    config = NemotronOmniConfig()
    defaults = {
        "vision_config": None,
        "llm_config": None,
        "sound_config": None,
        "force_image_size": 512,
        "downsample_ratio": 0.5,
        "patch_size": 16,
        "template": None,
        "ps_version": "v2",
        "image_tag_type": "internvl",
        "projector_hidden_size": 20480,
        "vit_hidden_size": 1280,
        "img_context_token_id": 18,
        "video_context_token_id": 131081,
        "sound_context_token_id": 27,
        "video_pruning_rate": 0.7,
    }
    assert {name: getattr(config, name) for name in defaults} == defaults
    assert config.model_type == "NemotronH_Nano_Omni_Reasoning_V3"


def test_attributes_are_the_pages(omni: NemotronOmniForConditionalGeneration) -> None:
    assert page.ModelClass is NemotronOmniForConditionalGeneration
    assert isinstance(page.logger, logging.Logger)
    assert page.logger.name == page.__name__
    assert omni.video_temporal_patch_dim == 2
    assert omni.num_image_token == 4
    assert omni.model.language_model is omni.language_model.model
    assert omni.model.moe_config is omni.language_model.model.moe_config
    assert not any(name.startswith("model.") for name in omni.state_dict())
    for part in ("norm", "linear1", "activation", "linear2"):
        assert isinstance(getattr(omni.vision_projector, part), nn.Module)
        assert isinstance(getattr(omni.sound_projection, part), nn.Module)


def test_small_modules_do_what_their_names_say() -> None:
    x = torch.randn(3, 8)
    assert torch.equal(page.SquaredReLU()(x), x.clamp(min=0) ** 2)
    norm = page.RMSNorm(8)
    nn.init.normal_(norm.weight)
    expected = torch.nn.functional.rms_norm(x.double(), (8,), norm.weight.double(), 1e-5)
    torch.testing.assert_close(norm(x), expected.float())
    assert norm(x.bfloat16()).dtype == torch.bfloat16
    assert page.VisionProjector(8, 5, 7, downsample_ratio=0.25)(torch.randn(2, 128)).shape == (2, 7)
    assert page.SoundProjection(8, 5, 7, bias=True).linear2.bias is not None
    assert page.SoundProjection(8, 5, 7).linear1.bias is None


def test_embeddings_can_be_replaced(config: NemotronOmniConfig) -> None:
    model = NemotronOmniForConditionalGeneration(config)
    embeddings, head = nn.Embedding(300, 64), nn.Linear(64, 300, bias=False)
    model.set_input_embeddings(embeddings)
    model.set_output_embeddings(head)
    assert model.get_input_embeddings() is embeddings
    assert model.get_output_embeddings() is head


def test_a_misspelt_argument_is_refused(omni: NemotronOmniForConditionalGeneration) -> None:
    with pytest.raises(TypeError, match="sound_feature"):
        omni(input_ids=torch.zeros(1, 3, dtype=torch.int64), sound_feature=torch.zeros(1))


def test_a_model_needs_both_sections_and_agreeing_temporal_patches() -> None:
    with pytest.raises(ConfigError, match="vision_config"):
        NemotronOmniForConditionalGeneration(NemotronOmniConfig())
    with pytest.raises(ConfigError, match="video_temporal_patch_size is 4"):
        NemotronOmniConfig(**(CONFIG | {"video_temporal_patch_size": 4}))


def test_random_weights_are_finite_seeded_and_of_the_asked_dtype(config: NemotronOmniConfig) -> None:
    torch.manual_seed(5)
    first = NemotronOmniForConditionalGeneration.from_config(config)
    torch.manual_seed(5)
    with torch.device("meta"):
        second = NemotronOmniForConditionalGeneration(config)
    second.initialize_weights(dtype=torch.float32)
    for name, tensor in first.state_dict().items():
        assert torch.isfinite(tensor).all(), name
        assert torch.equal(tensor, second.state_dict()[name]), name
    second.initialize_weights()
    assert second.get_output_embeddings().weight.dtype == torch.bfloat16
    assert torch.equal(second.vision_model.summary_idxs, first.vision_model.summary_idxs)
    output = first(input_ids=torch.arange(10)[None])
    assert torch.isfinite(output.logits).all()


def test_what_upstream_offers_beside_the_page(omni: NemotronOmniForConditionalGeneration) -> None:
    assert NemotronOmniConfig().is_composition is True
    assert omni.lm_head is omni.language_model.lm_head
    assert "lm_head" not in omni._modules
    assert any(base.__name__ == "HFCheckpointingMixin" for base in type(omni).__mro__)


def test_excluded_names_do_not_come_out(omni: NemotronOmniForConditionalGeneration) -> None:
    adapter, internal = omni.state_dict_adapter, omni.state_dict()
    whole = adapter.to_hf(internal).keys()
    without = adapter.to_hf(internal, exclude_key_regex=r"vision_projector|.*lm_head").keys()
    assert whole - without == {"mlp1.0.weight", "mlp1.1.weight", "mlp1.3.weight", "language_model.lm_head.weight"}
    released = adapter.to_hf(internal, exclude_key_regex=r"language_model\.backbone").keys()
    assert {name.split(".backbone")[0] for name in whole - released} == {"language_model"}
