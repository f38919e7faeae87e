"""Makes a model compute as the engine does."""

from collections.abc import Mapping

from torch import nn

from omni_rl.models.nemotron_omni.language.attention import Attention
from omni_rl.models.nemotron_omni.language.block import Block
from omni_rl.models.nemotron_omni.language.mamba import MambaMixer
from omni_rl.models.nemotron_omni.language.moe import Router
from omni_rl.models.nemotron_omni.language.norm import AddRMSNorm
from omni_rl.models.nemotron_omni.layers import RMSNorm
from omni_rl.models.nemotron_omni.matched.attention import MatchedAttention
from omni_rl.models.nemotron_omni.matched.block import MatchedBlock
from omni_rl.models.nemotron_omni.matched.mamba import InvariantMatchedMambaMixer, MatchedMambaMixer
from omni_rl.models.nemotron_omni.matched.norms import MatchedAddRMSNorm, MatchedRMSNorm
from omni_rl.models.nemotron_omni.matched.operators import operators
from omni_rl.models.nemotron_omni.matched.routing import InvariantRouter, MatchedRouter
from omni_rl.settings import Numerics

_MATCHED: Mapping[type[nn.Module], type[nn.Module]] = {
    Attention: MatchedAttention,
    Block: MatchedBlock,
    MambaMixer: MatchedMambaMixer,
    Router: MatchedRouter,
    AddRMSNorm: MatchedAddRMSNorm,
    RMSNorm: MatchedRMSNorm,
}
_INVARIANT = {**_MATCHED, MambaMixer: InvariantMatchedMambaMixer, Router: InvariantRouter}
_MODULES: Mapping[Numerics, Mapping[type[nn.Module], type[nn.Module]]] = {
    "reference": {},
    "matched": _MATCHED,
    "batch_invariant": _INVARIANT,
}


def match(model: nn.Module, numerics: Numerics) -> None:
    """Give every module of `model` that rounds elsewhere than the engine a forward that rounds where the engine does.

    The parameters, and their names, stay. Raises `ConfigError` where vLLM's CPU operators are missing.
    """
    operators()
    for module in model.modules():
        if type(module) in _MODULES[numerics]:
            module.__class__ = _MODULES[numerics][type(module)]
