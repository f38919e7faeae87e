"""What vLLM loads through its entry point `vllm.general_plugins`, in every process that it starts."""

from functools import cache


@cache
def register() -> None:
    """Teach vLLM Nemotron Omni: its config, small RADIO towers, relu-squared experts on CPU, our model class."""
    from vllm import ModelRegistry
    from vllm.transformers_utils.configs.radio import VIT_TIMM_DIM_BY_NAME

    from omni_rl.models.nemotron_omni import config, radio_sizes
    from omni_rl.rollout import experts, policy

    VIT_TIMM_DIM_BY_NAME.update(radio_sizes.RADIO_SIZES)
    experts.register()
    # The class itself: a name would make vLLM inspect it in a process of its own, ten seconds and without our shim.
    ModelRegistry.register_model(config.NemotronOmniConfig.model_type, policy.OmniPolicy)
