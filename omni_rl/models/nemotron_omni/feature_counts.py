"""Tells how many features Nemotron Omni makes of media, for those who check prompts before a model runs."""

from omni_rl.media.slots import FeatureCounts
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig


def feature_counts(config: NemotronOmniConfig) -> FeatureCounts:
    """Return the feature counts that a configuration implies."""
    sound = config.sound_config
    return FeatureCounts(
        side=round(config.patch_size / config.downsample_ratio),
        frames=config.video_temporal_patch_size or 1,
        halvings=None if sound is None else int(sound.subsampling_factor).bit_length() - 1,
    )
