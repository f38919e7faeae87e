"""Defines faults of what an engine carries from token to token and from request to request. A fault takes the engine
and a seed."""

from collections.abc import Callable
from typing import Any

from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.mamba.mamba_mixer2 import MambaMixer2

from omni_rl.consistency.actions import Cause
from omni_rl_bench.sabotage import patches
from omni_rl_bench.sabotage.fault import Fault


def encoder_cache_kept(engine: Any, seed: int) -> None:
    """Have the next sync leave the features of pictures and sounds that older weights computed."""
    patches.once(engine.llm_engine, "reset_encoder_cache", lambda original: True)


def rounded_state(engine: Any, seed: int) -> None:
    """Round Mamba's state to bfloat16 between two tokens."""
    _after_mixers(engine, 1, lambda state: state.bfloat16().to(state.dtype))


def lost_convolution(engine: Any, seed: int) -> None:
    """Forget the inputs of the convolution's window between two tokens."""
    _after_mixers(engine, 0, lambda state: state * 0)


def _after_mixers(engine: Any, part: int, change: Callable[[Any], Any]) -> None:
    """Change what Mamba mixers store for the next token, after each step: the window (`part` 0) or the state (1)."""
    for module in engine.model.modules():
        if isinstance(module, MambaMixer2):
            patches.hook(module, _changing(module, part, change))


def _changing(mixer: Any, part: int, change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def after(found: Any) -> Any:
        metadata = get_forward_context().attn_metadata
        if metadata is not None:
            mine = metadata[mixer.prefix]
            for rows in (mine.state_indices_tensor_p, mine.state_indices_tensor_d):
                if rows is not None:
                    kept = mixer.kv_cache[part]
                    kept[rows.flatten()] = change(kept[rows.flatten()])
        return found

    return after


FAULTS = (
    Fault("encoder cache stale", (Cause.STALE_CACHE,), encoder_cache_kept, "before VERIFY"),
    Fault("decode state in bfloat16", (Cause.DECODE_PREFILL,), rounded_state),
    Fault("convolution's window lost", (Cause.DECODE_PREFILL,), lost_convolution),
)
