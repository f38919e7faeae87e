"""Translates the configuration that transformers' native class saves (`nemotron_h_omni`) to the released checkpoint's
terms.

Its weights have the released names, beside some that are derived; only config.json differs.
"""

from collections.abc import Mapping
from typing import Any

from omni_rl.errors import ConfigError
from omni_rl.models.nemotron_omni.radio_sizes import RADIO_SIZES

MODEL_TYPE = "nemotron_h_omni"

_SAME = ("force_image_size", "downsample_ratio", "projector_hidden_size", "video_pruning_rate", "dtype")
_RENAMED = {
    "vision_hidden_size": "vit_hidden_size",
    "image_token_id": "img_context_token_id",
    "video_token_id": "video_context_token_id",
    "audio_token_id": "sound_context_token_id",
}
# The released 30B's values of what only the engine's tiler reads and a native configuration does not have.
_MIN_PATCHES, _MAX_PATCHES = 1024, 13312


def from_native(native: Mapping[str, Any]) -> dict[str, Any]:
    """Return the released config.json of what a native one describes.

    Patch limits, which a native one lacks, are the released model's, or what its largest image holds. Raises
    `ConfigError` for a vision tower of a size without a name.
    """
    vision, text = native["vision_config"], native["text_config"]
    audio = native.get("audio_config")
    found = {name: native[name] for name in _SAME if native.get(name) is not None}
    found |= {ours: native[theirs] for theirs, ours in _RENAMED.items() if native.get(theirs) is not None}
    found |= {name: vision[name] for name in ("norm_mean", "norm_std", "patch_size") if name in vision}
    found["llm_config"] = {name: value for name, value in text.items() if name != "model_type"}
    found["vision_config"] = _vision(vision)
    if audio is not None:
        found["sound_config"] = {name: value for name, value in audio.items() if name != "model_type"}
        projection = audio.get("projection_hidden_size")
        if projection is None:
            raise ConfigError("audio_config has no projection_hidden_size; add it, the width of the sound projection")
        found["sound_config"].setdefault("projection_bias", False)
    return found


def _vision(radio: Mapping[str, Any]) -> dict[str, Any]:
    hidden, layers, heads = (radio[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    size = (hidden, layers, heads, round(hidden * radio["mlp_ratio"]))
    name = next((name for name, known in RADIO_SIZES.items() if tuple(known) == size), None)
    if name is None:
        raise ConfigError(f"vision_config has {size} (width, layers, heads, MLP), which no RADIO is known to have")
    classes, registers = radio["num_cls_tokens"], radio["num_registers"]
    largest = radio["max_img_size"]
    patches = (largest // radio["patch_size"]) ** 2
    return {
        "args": {
            "model": name,
            "min_num_patches": min(_MIN_PATCHES, patches),
            "max_num_patches": min(_MAX_PATCHES, patches),
            "cpe_max_size": largest,
            # Prefix tokens (classes and registers together) fill up to a multiple.
            "register_multiple": classes + registers if registers else None,
            "cls_token_per_teacher": True,
            "teachers": [
                {"name": f"teacher_{number}", "use_summary": number in radio["summary_idxs"]}
                for number in range(classes)
            ],
        },
        "patch_size": radio["patch_size"],
        "preferred_resolution": [largest // 2, largest // 2],
        "video_temporal_patch_size": radio["video_temporal_patch_size"],
        "separate_video_embedder": True,
    }
