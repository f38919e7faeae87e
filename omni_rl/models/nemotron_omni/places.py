"""Lists where in Nemotron Omni outputs are taken to be compared, by names that engine and trainer share.

In a shared name, `\\1` stands for the layer's number.
"""

from collections.abc import Mapping

from omni_rl.models.recording import LAST_NORM, LOGITS, Place

IN_ENGINE: Mapping[str, Place] = {
    r"vision_model\.model\.patch_generator\.embedder": Place("vision.patches", "input"),
    r"vision_model\.model\.patch_generator\.video_embedder": Place("vision.video_patches", "input"),
    # A block itself runs no hooks: vLLM's decorator for compilation calls its `forward`.
    r"vision_model\.model\.encoder\.layers\.(\d+)\.attn": Place(r"vision.layers.\1.attention"),
    r"vision_model\.model\.encoder\.layers\.(\d+)\.mlp": Place(r"vision.layers.\1.mlp"),
    r"mlp1": Place("vision_projector"),
    r"sound_encoder\.encoder\.subsampling": Place("sound.subsampling"),
    r"sound_encoder\.encoder\.subsampling\.layers\.0": Place("sound.features", "input"),
    r"sound_encoder\.encoder\.layers\.(\d+)": Place(r"sound.layers.\1"),
    r"sound_encoder\.projection": Place("sound_projection"),
    r"language_model\.model\.layers\.0": Place("embeddings", "input"),
    r"language_model\.model\.layers\.(\d+)\.norm": Place(r"layers.\1.norm"),
    r"language_model\.model\.layers\.(\d+)\.mixer": Place(r"layers.\1.mixer"),
    r"language_model\.model\.norm_f": Place(LAST_NORM),
    r"language_model\.logits_processor": Place(LOGITS),
}
"""The places by a pattern of the names in vLLM's model."""

IN_TRAINER: Mapping[str, Place] = {
    r"vision_model\.embeddings\.patch_projection": Place("vision.patches", "input"),
    r"vision_model\.embeddings\.video_patch_projection": Place("vision.video_patches", "input"),
    r"vision_model\.encoder\.layer\.(\d+)\.attention": Place(r"vision.layers.\1.attention"),
    r"vision_model\.encoder\.layer\.(\d+)\.mlp": Place(r"vision.layers.\1.mlp"),
    r"vision_projector": Place("vision_projector"),
    r"sound_encoder\.subsampling": Place("sound.subsampling"),
    r"sound_encoder\.subsampling\.layers\.0": Place("sound.features", "input"),
    r"sound_encoder\.layers\.(\d+)": Place(r"sound.layers.\1"),
    r"sound_projection": Place("sound_projection"),
    r"language_model\.model\.layers\.0": Place("embeddings", "input"),
    r"language_model\.model\.layers\.(\d+)\.norm": Place(r"layers.\1.norm"),
    r"language_model\.model\.layers\.(\d+)\.mixer": Place(r"layers.\1.mixer"),
    r"language_model\.model\.norm": Place(LAST_NORM),
}
"""The places by a pattern of the names in the training copy."""
