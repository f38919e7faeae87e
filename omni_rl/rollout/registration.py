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
    """Teach vLLM our way to load weights, and what each family needs; further calls in a process do nothing."""
    register_model_loader(LOAD_FORMAT)(PlainWeightsLoader)
    for family in families():
        family.serving.register()


def load_class(checkpoint: Path) -> None:
    """Load the class of a checkpoint's architecture into vLLM's registry, where it is vLLM's own and not one that a
    family registered.

    Otherwise vLLM would inspect the class in a process of its own, which takes ten seconds and lacks our shim for
    torchvision.
    """
    for name in json.loads((checkpoint / "config.json").read_text()).get("architectures") or ():
        known = ModelRegistry.models.get(name)
        if isinstance(known, _LazyRegisteredModel):
            ModelRegistry.register_model(name, known.load_model_cls())
