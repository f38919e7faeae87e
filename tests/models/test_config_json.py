"""One config.json for both sides."""

from pathlib import Path

from transformers import AutoConfig
from vllm.transformers_utils.configs.parakeet import ExtractorConfig, ParakeetConfig

from omni_rl.models.nemotron_omni.config import NemotronOmniConfig

from .conftest import CONFIG


def test_auto_config_reads_the_released_file_and_vllm_finds_its_sections(small_checkpoint: Path) -> None:
    config = AutoConfig.from_pretrained(small_checkpoint)
    assert isinstance(config, NemotronOmniConfig)
    assert config.text_config is config.llm_config is config.get_text_config()
    assert config.llm_config.hybrid_override_pattern
    assert config.vision_config.args["cls_token_per_teacher"] is not None
    assert config.video_temporal_patch_size == config.vision_config.video_temporal_patch_size


def test_a_saved_configuration_is_the_same_one(config: NemotronOmniConfig, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    again = NemotronOmniConfig.from_pretrained(tmp_path)
    assert again.llm_config.hybrid_override_pattern == config.llm_config.hybrid_override_pattern
    assert tuple(again.llm_config.time_step_limit) == (0.0, float("inf"))
    assert again.vision_config.args == config.vision_config.args
    assert again.sound_config.projection_hidden_size == config.sound_config.projection_hidden_size
    assert again.dtype == config.dtype


def test_the_sound_section_is_one_that_vllm_takes() -> None:
    """vLLM sets input scaling, attention biases and positions itself, and fails on a section that has them too."""
    section = CONFIG["sound_config"] | {"scale_input": True, "attention_bias": True, "max_position_embeddings": 7}
    config = NemotronOmniConfig(**(CONFIG | {"sound_config": section}))
    encoder = ParakeetConfig.from_hf_config(config.sound_config, llm_hidden_size=64, max_model_len=100)
    assert encoder.scale_input is False
    assert encoder.attention_bias is False
    assert ExtractorConfig.from_hf_config(config.sound_config).feature_size == 16
