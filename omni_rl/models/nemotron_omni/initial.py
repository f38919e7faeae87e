"""Makes random weights for a model that no checkpoint fills."""

import math

import torch
from torch import nn
from transformers.models.parakeet.modeling_parakeet import ParakeetEncoderAttention
from transformers.models.radio.modeling_radio import RadioPatchEmbeddings

from omni_rl.models.nemotron_omni.language.mamba import GatedRMSNorm, MambaMixer, StateDecay
from omni_rl.models.nemotron_omni.language.moe import Experts, Router
from omni_rl.models.nemotron_omni.language.norm import AddRMSNorm
from omni_rl.models.nemotron_omni.layers import RMSNorm

_STD = 0.02


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """Fill every parameter and buffer of `model`, with torch's global generator: matrices normal, norms at identity.

    Mamba's A_log, D and dt_bias follow its authors (Dao and Gu 2024): A from 1 to the number of heads, D one, and dt
    log-uniform between the configured limits.
    """
    for module in model.modules():
        _fill(module)
    # Residual outputs shrink with depth, so that the stream's variance does not grow with it (GPT-2, section 2.3).
    mixers = [module for module in model.modules() if isinstance(module, MambaMixer)]
    for mixer in mixers:
        mixer.out_proj.weight.div_(math.sqrt(2 * len(mixers)))


def _fill(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Embedding):
        nn.init.normal_(module.weight, std=_STD)
        if not isinstance(module, nn.Embedding) and module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm1d | nn.LayerNorm):
        module.reset_parameters()
    elif isinstance(module, RMSNorm | AddRMSNorm | GatedRMSNorm):
        nn.init.ones_(module.weight)
    elif isinstance(module, StateDecay):
        module.A_log.copy_(torch.arange(1, len(module.A_log) + 1, dtype=torch.float32).log())
    elif isinstance(module, MambaMixer):
        nn.init.ones_(module.D)
        module.dt_bias.copy_(_inverse_softplus_of_steps(len(module.dt_bias), *module.dt_range))
    elif isinstance(module, Router):
        nn.init.normal_(module.weight, std=_STD)
        nn.init.zeros_(module.e_score_correction_bias)
    elif isinstance(module, Experts):
        nn.init.normal_(module.up_proj, std=_STD)
        nn.init.normal_(module.down_proj, std=_STD)
    elif isinstance(module, RadioPatchEmbeddings):
        nn.init.trunc_normal_(module.position_embedding, std=_STD)
        nn.init.trunc_normal_(module.cls_register_token, std=_STD)
    elif isinstance(module, ParakeetEncoderAttention):
        nn.init.normal_(module.bias_u, std=_STD)
        nn.init.normal_(module.bias_v, std=_STD)


def _inverse_softplus_of_steps(heads: int, smallest: float, largest: float, floor: float) -> torch.Tensor:
    steps = torch.exp(torch.empty(heads).uniform_(math.log(smallest), math.log(largest))).clamp(min=floor)
    return steps + torch.log(-torch.expm1(-steps))
