"""Faults of what an engine carries from step to step, and of the logprobs that it reports.

A fault takes the engine and a seed.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.mamba.mamba_mixer2 import MambaMixer2

from omni_rl.rollout import engine as engine_room
from omni_rl.rollout.types import Rollout, SamplingSettings
from omni_rl.sabotage import points

TOP_P = 0.8


def encoder_cache_kept(engine: Any, seed: int) -> None:
    """The next sync leaves the features of pictures and sounds that older weights computed."""
    points.once(engine.llm_engine, "reset_encoder_cache", lambda original: True)


def raw_logprobs(engine: Any, seed: int) -> None:
    """Before the temperature."""
    sampler = _runner(engine).sampler
    for owner in (sampler, sampler.topk_topp_sampler):
        points.replace(owner, "logprobs_mode", lambda original: "raw_logprobs")


def top_p(engine: Any, seed: int) -> None:
    """Nobody asked for it, and nobody is told."""
    _sampled_as(lambda sampling: replace(sampling, top_p=TOP_P))


def hotter(engine: Any, seed: int) -> None:
    """Twice the temperature, which nobody is told; the logprobs are those that it sampled with."""
    _sampled_as(lambda sampling: replace(sampling, temperature=2 * sampling.temperature))


def _sampled_as(change: Callable[[SamplingSettings], SamplingSettings]) -> None:
    def instead(original: Any) -> Callable[..., Any]:
        return lambda sampling, index: original(change(sampling), index)

    points.replace(engine_room, "sampling_params", instead)


def shifted(engine: Any, seed: int) -> None:
    """Each logprob stands at the next token."""

    def instead(original: Any) -> Callable[..., Any]:
        def answer(request: Any, output: Any) -> Any:
            found = original(request, output)
            return replace(found, logprobs=np.roll(found.logprobs, 1)) if isinstance(found, Rollout) else found

        return answer

    points.replace(engine, "_answer", instead)


def rounded_state(engine: Any, seed: int) -> None:
    """Mamba's state in bfloat16 between two tokens."""
    for module in engine.model.modules():
        if isinstance(module, MambaMixer2):
            points.hook(module, _rounding(module))


def _rounding(mixer: Any) -> Callable[[Any], Any]:
    def after(found: Any) -> Any:
        metadata = get_forward_context().attn_metadata
        if metadata is not None:
            mine = metadata[mixer.prefix]
            for rows in (mine.state_indices_tensor_p, mine.state_indices_tensor_d):
                if rows is not None:
                    state = mixer.kv_cache[1]
                    state[rows.flatten()] = state[rows.flatten()].bfloat16().to(state.dtype)
        return found

    return after


def _runner(engine: Any) -> Any:
    return engine._recorder.runner
