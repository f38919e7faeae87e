"""Says which released tensors of Nemotron Omni are weights, and which of them are served in float32."""

import re

from omni_rl.sync.released import ReleasedFormat

LAYER_SCALES = re.compile(r"vision_model\.radio_model\.model\.blocks\.\d+\.(ls|layer_scale)[12](\..*)?")
"""The names of the vision tower's layer scales, which are identities, as transformers' native class stores them."""

RELEASED = ReleasedFormat(
    # Some checkpoints store these tensors too; both sides make them from the configuration instead.
    derived=(
        re.compile(r"vision_model\.radio_model\.(summary_idxs|input_conditioner\..*)"),
        LAYER_SCALES,
        re.compile(r"vision_model\.summary_idxs"),
        re.compile(r"sound_encoder\.encoder\.feature_extractor\..*"),
    ),
    # The engine holds A and the router's bias in float32 whatever the model's dtype: rounded to bfloat16 before it gets
    # them, the bias alone changed the routing of most tokens.
    float32=(".A_log", ".gate.e_score_correction_bias"),
)
