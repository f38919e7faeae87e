"""An engine on CPU whose prefill has the bits of its own decode, in bfloat16.

vLLM decodes with other operators than it prefills with. Here both use one of the two: prefill the state update of
decode, token by token, and decode the convolution of prefill. Few rows, and the ends of tensors, are padded, since a
float32 product of one to three rows and a sigmoid without vector instructions have last bits of their own. The experts'
products are left as they are, which in float32 shows.

Shapes: T tokens; S sequences; H heads of P channels; G groups of N states; D convolved channels, K taps.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from vllm import envs
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
from vllm.model_executor.layers.mamba import mamba_mixer2
from vllm.model_executor.layers.mamba.mamba_mixer2 import MambaMixer2
from vllm.model_executor.layers.mamba.ops.causal_conv1d import causal_conv1d_fn

from omni_rl.errors import ConfigError
from omni_rl.models.nemotron_omni.matched.operators import ScanInput, update_states
from omni_rl.models.nemotron_omni.matched.routing import rows_missing

FEWEST = 4
"""Rows from which on a row of a float32 product has the same bits however many there are. One, two and three have
others, of which two and three show from 16 columns on."""


def make_invariant(model: nn.Module) -> None:
    """Give the loaded `model`'s layers the operators named above; its weights stay as they are.

    Raises `ConfigError` where the environment lets vLLM split an attention over threads.
    """
    if envs.VLLM_CPU_ATTN_SPLIT_KV:
        raise ConfigError("a batch-invariant engine needs VLLM_CPU_ATTN_SPLIT_KV=0: split, decode has bits of its own")
    for module in model.modules():
        if isinstance(module, MambaMixer2):
            module.__class__ = InvariantMambaMixer
        elif isinstance(module, MoERunner):
            module.router._compute_routing = _padded(module.router._compute_routing)
        if getattr(module, "cpu_linear", None) is F.linear:
            setattr(module, "cpu_linear", linear)  # noqa: B010 - mypy takes every attribute of a module for a tensor


class InvariantMambaMixer(MambaMixer2):  # type: ignore[misc]
    """vLLM's mixer with one convolution and one scan for prefill and decode."""

    def conv_ssm_forward(self, projected_states: torch.Tensor, output: torch.Tensor) -> None:
        """Writes [T, inner] to `output`; `projected_states` [T, in_proj's width]."""
        # vLLM has no seam between a mixer and its operators: it finds them by these names.
        ours: dict[str, Callable[..., Any]] = {
            "causal_conv1d_update": convolve_step,
            "mamba_chunk_scan_combined_varlen": scan_by_steps,
        }
        with _replaced(mamba_mixer2, ours):
            super().conv_ssm_forward(projected_states=projected_states, output=output)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`F.linear`, fewer than `FEWEST` rows with rows of zeros after them."""
    rows = x.reshape(-1, x.shape[-1])
    missing = FEWEST - len(rows)
    if missing <= 0:
        return F.linear(x, weight, bias)
    return F.linear(F.pad(rows, (0, 0, 0, missing)), weight, bias)[: len(rows)].view(*x.shape[:-1], -1)


def convolve_step(
    x: torch.Tensor,
    states: torch.Tensor,
    taps: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str,
    conv_state_indices: torch.Tensor,
    **_: object,
) -> torch.Tensor:
    """A token of each of S sequences by prefill's convolution: `x` [S, D], `states` [slots, D, K - 1], to [S, D]."""
    convolved: torch.Tensor = causal_conv1d_fn(
        x.T,
        taps,
        bias,
        activation=activation,
        conv_states=states,
        has_initial_state=torch.ones(len(x), dtype=torch.bool),
        cache_indices=conv_state_indices,
        query_start_loc=torch.arange(len(x) + 1, dtype=torch.int32),
    )
    return convolved.T


def scan_by_steps(
    x: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    *,
    cu_seqlens: torch.Tensor,
    out: torch.Tensor,
    D: torch.Tensor,  # noqa: N803 - vLLM's name
    dt_bias: torch.Tensor,
    initial_states: torch.Tensor | None,
    state_dtype: torch.dtype,
    **_: object,
) -> torch.Tensor:
    """A prefill by decode's state update: `x` [T, H, P], `dt` [T, H], `a`, `D`, `dt_bias` [H], `b` and `c` [T, G, N],
    to `out` [T, H, P]; returns the states at the sequences' ends [S, H, P, N]."""
    shape = len(cu_seqlens) - 1, *x.shape[1:], b.shape[2]
    states = torch.zeros(shape) if initial_states is None else initial_states
    states = states.to(state_dtype, copy=True)
    update_states(states, cu_seqlens.int(), ScanInput(x, dt, a, b, c, D, dt_bias), out)
    return states


def _padded(route: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> Callable[..., Any]:
    """A router's choice on as many rows as vector instructions compute all sigmoids of."""

    def routed(hidden_states: torch.Tensor, router_logits: torch.Tensor, *rest: Any, **named: Any) -> Any:
        rows = len(router_logits)
        missing = rows_missing(rows)
        wide = (torch.cat([part, part[-1:].expand(missing, -1)]) for part in (hidden_states, router_logits))
        weights, experts = route(*wide, *rest, **named)
        return weights[:rows], experts[:rows]

    return routed


@contextmanager
def _replaced(module: ModuleType, functions: dict[str, Callable[..., Any]]) -> Iterator[None]:
    before = {name: getattr(module, name) for name in functions}
    vars(module).update(functions)
    try:
        yield
    finally:
        vars(module).update(before)
