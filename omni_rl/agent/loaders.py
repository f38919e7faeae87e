"""The names that a model's loader in vLLM gives to what a checkpoint holds, where only its code says so.

Most loaders have a table (`hf_to_vllm_mapper`), which the agent follows.
"""

from collections.abc import Mapping

from omni_rl.agent.names import Renames

BY_CLASS: Mapping[str, Renames] = {
    "NemotronH_Nano_VL_V2": Renames(
        substrings={"radio_model.model.blocks.": "model.encoder.layers.", "radio_model.model.": "model."},
        prefixes={"sound_projection.": "sound_encoder.projection."},
    ),
}
"""The renames of a loader, by the name of vLLM's class of the model."""
