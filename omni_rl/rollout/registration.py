"""Teaches vLLM what it needs before it serves a policy, for `omni_rl.vllm_plugin` and by the engine itself."""

import json
from functools import cache
from pathlib import Path

from vllm import ModelRegistry
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.models.registry import _LazyRegisteredModel

from omni_rl.models.families import families
from omni_rl.rollout.plain_weights import LOAD_FORMAT, PlainWeightsLoader


@cache
def register() -> None:
    """Teach vLLM our way to load weights, and what each family needs. Once in a process."""
    register_model_loader(LOAD_FORMAT)(PlainWeightsLoader)
    for family in families():
        family.serving.register()


def load_class(checkpoint: Path) -> None:
    """Have vLLM find its own class of a checkpoint's architecture loaded, where no family registered another.

    Else it would inspect that in a process of its own, ten seconds and without our shim for torchvision.
    """
    for name in json.loads((checkpoint / "config.json").read_text()).get("architectures") or ():
        known = ModelRegistry.models.get(name)
        if isinstance(known, _LazyRegisteredModel):
            ModelRegistry.register_model(name, known.load_model_cls())
