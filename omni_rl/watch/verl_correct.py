"""Puts importance weights into verl's loss, in the place where verl's own rollout correction would put its weights."""

import logging
import os
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, get_args

from omni_rl.consistency.corrections import Correction, Method
from omni_rl.watch.guard import guarded
from omni_rl.watch.weights import token_weights

log = logging.getLogger("omni_rl.watch")
VARIABLE = "OMNI_RL_CORRECT"
PLACE = "rollout_is_weights"
"""The batch's tensor that verl multiplies each token's loss with."""
HELPER = "verl.trainer.ppo.rollout_corr_helper"
FUNCTION = "compute_rollout_correction_and_add_to_batch"


def asked() -> Method | None:
    """Return the method that OMNI_RL_CORRECT names; None without one, or with one that does not exist."""
    name = os.environ.get(VARIABLE)
    method = next((known for known in get_args(Method) if known == name), None)
    if name and method is None:
        log.warning("omni-rl: %s=%s is none of %s; nothing is corrected", VARIABLE, name, ", ".join(get_args(Method)))
    return method


def add_weights(batch: Any, method: Method) -> dict[str, float]:
    """Put a weight for each token into a `DataProto`, float32 [B, T], 0 where the mask is 0; return what to log.

    verl's own weights, if its configuration has any (`algorithm.rollout_correction.rollout_is`), stay.
    """
    if batch.batch.get(PLACE, None) is not None:
        return {}
    mask = batch.batch["response_mask"]
    found = token_weights(batch.batch["rollout_log_probs"], batch.batch["old_log_probs"], mask, Correction(method))
    batch.batch[PLACE] = found
    return {"omni_rl/weight_mean": float((found * mask).sum() / mask.sum().clamp(min=1))}


def wrap(module: Any, method: Method) -> None:
    """Correct every batch that the module's `compute_rollout_correction_and_add_to_batch` returns."""
    compute: Callable[..., tuple[Any, dict[str, Any]]] = getattr(module, FUNCTION)

    @wraps(compute)
    def corrected(batch: Any, config: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        batch, metrics = compute(batch, config)
        figures = guarded(lambda: add_weights(batch, method), "a batch is not corrected")
        return batch, {**metrics, **(figures or {})}

    corrected.omni_rl = True  # type: ignore[attr-defined]
    setattr(module, FUNCTION, corrected)


def install(modules: tuple[str, ...], method: Method) -> None:
    """Wrap the function in the modules of verl that have it by now: each may have taken it under its own name."""
    for name in modules:
        module = sys.modules.get(name)
        if hasattr(module, FUNCTION) and not hasattr(getattr(module, FUNCTION), "omni_rl"):
            wrap(module, method)
