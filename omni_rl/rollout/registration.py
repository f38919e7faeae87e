"""What vLLM 0.32 is taught before it serves Nemotron Omni; called through `omni_rl.vllm_plugin`."""

from functools import cache

from vllm import ModelRegistry
from vllm.transformers_utils.configs.radio import VIT_TIMM_DIM_BY_NAME

from omni_rl.models.nemotron_omni import config, radio_sizes
from omni_rl.rollout import experts, policy


@cache
def register() -> None:
    """Its config, small RADIO towers, relu-squared experts on CPU, our model class. Once in a process."""
    VIT_TIMM_DIM_BY_NAME.update(radio_sizes.RADIO_SIZES)
    experts.register()
    # The class itself: a name would make vLLM inspect it in a process of its own, ten seconds and without our shim.
    ModelRegistry.register_model(config.NemotronOmniConfig.model_type, policy.OmniPolicy)
