"""Lists where in Nemotron Omni outputs are taken to be compared, by names that engine and trainer share.

In a shared name, `\\1` stands for the layer's number.
"""

from collections.abc import Mapping

from omni_rl.models.recording import LAST_NORM, LOGITS, ModuleSide

IN_ENGINE: Mapping[str, ModuleSide] = {
    r"vision_model\.model\.patch_generator\.embedder": ModuleSide("vision.patches", "input"),
    r"vision_model\.model\.patch_generator\.video_embedder": ModuleSide("vision.video_patches", "input"),
    # A block itself runs no hooks: vLLM's decorator for compilation calls its `forward`.
    r"vision_model\.model\.encoder\.layers\.(\d+)\.attn": ModuleSide(r"vision.layers.\1.attention"),
    r"vision_model\.model\.encoder\.layers\.(\d+)\.mlp": ModuleSide(r"vision.layers.\1.mlp"),
    r"mlp1": ModuleSide("vision_projector"),
    r"sound_encoder\.encoder\.subsampling": ModuleSide("sound.subsampling"),
    r"sound_encoder\.encoder\.subsampling\.layers\.0": ModuleSide("sound.features", "input"),
    r"sound_encoder\.encoder\.layers\.(\d+)": ModuleSide(r"sound.layers.\1"),
    r"sound_encoder\.projection": ModuleSide("sound_projection"),
    r"language_model\.model\.layers\.0": ModuleSide("embeddings", "input"),
    r"language_model\.model\.layers\.(\d+)\.norm": ModuleSide(r"layers.\1.norm"),
    r"language_model\.model\.layers\.(\d+)\.mixer": ModuleSide(r"layers.\1.mixer"),
    r"language_model\.model\.norm_f": ModuleSide(LAST_NORM),
    r"language_model\.logits_processor": ModuleSide(LOGITS),
}
"""The places by a pattern of the names in vLLM's model."""

IN_TRAINER: Mapping[str, ModuleSide] = {
    r"vision_model\.embeddings\.patch_projection": ModuleSide("vision.patches", "input"),
    r"vision_model\.embeddings\.video_patch_projection": ModuleSide("vision.video_patches", "input"),
    r"vision_model\.encoder\.layer\.(\d+)\.attention": ModuleSide(r"vision.layers.\1.attention"),
    r"vision_model\.encoder\.layer\.(\d+)\.mlp": ModuleSide(r"vision.layers.\1.mlp"),
    r"vision_projector": ModuleSide("vision_projector"),
    r"sound_encoder\.subsampling": ModuleSide("sound.subsampling"),
    r"sound_encoder\.subsampling\.layers\.0": ModuleSide("sound.features", "input"),
    r"sound_encoder\.layers\.(\d+)": ModuleSide(r"sound.layers.\1"),
    r"sound_projection": ModuleSide("sound_projection"),
    r"language_model\.model\.layers\.0": ModuleSide("embeddings", "input"),
    r"language_model\.model\.layers\.(\d+)\.norm": ModuleSide(r"layers.\1.norm"),
    r"language_model\.model\.layers\.(\d+)\.mixer": ModuleSide(r"layers.\1.mixer"),
    r"language_model\.model\.norm": ModuleSide(LAST_NORM),
}
"""The places by a pattern of the names in the training copy."""
