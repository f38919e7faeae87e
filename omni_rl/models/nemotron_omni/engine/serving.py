"""What vLLM 0.32 is taught before it serves Nemotron Omni."""

from functools import cache

from torch import nn
from vllm import ModelRegistry
from vllm.transformers_utils.configs.radio import VIT_TIMM_DIM_BY_NAME

from omni_rl.models.family import Serving
from omni_rl.models.nemotron_omni import config, radio_sizes
from omni_rl.models.nemotron_omni.engine import experts, invariant, policy


class NemotronOmniServing(Serving):
    """See `omni_rl.models.family.Serving`."""

    def register(self) -> None:
        """Its config, small RADIO towers, relu-squared experts on CPU, our model class."""
        _register()

    def make_invariant(self, model: nn.Module) -> None:
        invariant.make_invariant(model)


@cache
def _register() -> None:
    VIT_TIMM_DIM_BY_NAME.update(radio_sizes.RADIO_SIZES)
    experts.register()
    # The class itself: a name would make vLLM inspect it in a process of its own, ten seconds and without our shim.
    ModelRegistry.register_model(config.NemotronOmniConfig.model_type, policy.OmniPolicy)


SERVING = NemotronOmniServing()
