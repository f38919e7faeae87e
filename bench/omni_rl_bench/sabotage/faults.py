"""Lists every fault there is, and those that cannot be put in."""

from omni_rl.errors import ConfigError
from omni_rl_bench.sabotage import (
    kernels,
    logprobs,
    media,
    prompts,
    records,
    rendering,
    sampling,
    state,
    syncs,
    trainer,
    weights,
)
from omni_rl_bench.sabotage.fault import Fault

FAULTS: tuple[Fault, ...] = (
    *syncs.FAULTS,
    *weights.FAULTS,
    *state.FAULTS,
    *media.FAULTS,
    *prompts.FAULTS,
    *rendering.FAULTS,
    *sampling.FAULTS,
    *logprobs.FAULTS,
    *records.FAULTS,
    *trainer.FAULTS,
    *kernels.FAULTS,
)

UNPROVEN = {
    "prefix cache stale": "vLLM's prefix cache crashes with Mamba on CPU, so engines run without one: there is nothing "
    "to be stale"
}
"""The faults that are asked for and cannot be put into a run here, with the reasons."""


def chosen(name: str | None) -> tuple[Fault, ...]:
    """Return every fault, or those of that name. Raises `ConfigError` that lists the names."""
    found = tuple(fault for fault in FAULTS if name in (None, fault.name, fault.key))
    if not found:
        raise ConfigError(f"no fault {name!r}; there are: {', '.join(dict.fromkeys(f.name for f in FAULTS))}")
    return found
