"""Defines faults of how an engine samples: what nobody asked for, or is not reported. A fault takes the engine and a
seed."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from omni_rl.consistency.actions import Cause
from omni_rl.rollout import engine as engine_room
from omni_rl.rollout.types import SamplingSettings
from omni_rl_bench.sabotage import patches
from omni_rl_bench.sabotage.fault import Fault

TOP_P, TOP_K, MIN_P = 0.8, 50, 0.05
TEMPERATURES = (0.6, 0.8, 1.2, 1.3)


def raw_logprobs(engine: Any, seed: int) -> None:
    """Report the logprobs from before the temperature."""
    sampler = engine._recorder.runner.sampler
    for owner in (sampler, sampler.topk_topp_sampler):
        patches.replace(owner, "logprobs_mode", lambda original: "raw_logprobs")


def hotter(engine: Any, seed: int) -> None:
    """Sample at twice the temperature, without reporting it; the logprobs are those that the engine sampled with."""
    _asked(lambda sampling: replace(sampling, temperature=2 * sampling.temperature))


def at_temperature(temperature: float, engine: Any, seed: int) -> None:
    """Sample at another temperature, without reporting it."""
    _asked(lambda sampling: replace(sampling, temperature=temperature))


def with_parameter(name: str, value: float, engine: Any, seed: int) -> None:
    """Sample with one of vLLM's sampling parameters, without reporting it."""

    def instead(original: Any) -> Callable[..., Any]:
        def parameters(*arguments: Any) -> Any:
            found = original(*arguments)
            setattr(found, name, value)
            return found

        return parameters

    patches.replace(engine_room, "sampling_params", instead)


def _asked(change: Callable[[SamplingSettings], SamplingSettings]) -> None:
    def instead(original: Any) -> Callable[..., Any]:
        return lambda sampling, index: original(change(sampling), index)

    patches.replace(engine_room, "sampling_params", instead)


def _cut(name: str, parameter: str, value: float) -> Fault:
    return Fault(name, (Cause.SAMPLING_SUPPORT,), partial(with_parameter, parameter, value))


def _penalty(name: str, value: float) -> Fault:
    put = partial(with_parameter, f"{name}_penalty", value)
    return Fault(f"{name} penalty {value:g}, untold", (Cause.LOGPROB_POSTPROCESSING,), put)


FAULTS = (
    Fault("raw logprobs", (Cause.LOGPROB_POSTPROCESSING,), raw_logprobs, temperature=0.7),
    *(
        Fault(f"temperature {at:g}, untold", (Cause.LOGPROB_POSTPROCESSING,), partial(at_temperature, at))
        for at in TEMPERATURES
    ),
    _cut("top-p, untold", "top_p", TOP_P),
    _cut("top-k, untold", "top_k", TOP_K),
    _cut("min-p, untold", "min_p", MIN_P),
    _penalty("repetition", 1.2),
    _penalty("presence", 0.5),
    _penalty("frequency", 0.5),
)
