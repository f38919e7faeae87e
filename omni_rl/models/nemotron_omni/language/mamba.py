"""The Mamba2 mixer over packed sequences. Shapes: T packed tokens, H heads of P channels, G groups, N states."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import NemotronHConfig

from omni_rl.models.nemotron_omni.language.conv import causal_conv
from omni_rl.models.nemotron_omni.language.layout import PackedLayout
from omni_rl.models.nemotron_omni.language.scan import chunk_scan
from omni_rl.models.nemotron_omni.layers import at_least_float32

# Beyond this size the Q x Q blocks of the scan cost a CPU more than the states between chunks that they save.
_MAX_CHUNK = 32


class StateDecay(nn.Module):
    """Holds `A_log` [H] and gives A = -exp(A_log), in float32 whatever the model computes in, as the engine does.

    A module of its own so that it can be an FSDP unit of its own, out of the block's mixed precision.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.A_log = nn.Parameter(torch.zeros(heads, dtype=torch.float32))

    def forward(self) -> torch.Tensor:
        return -torch.exp(at_least_float32(self.A_log))


class GatedRMSNorm(nn.Module):
    """RMS norm of x · silu(gate) in each of `groups` equal parts; float32 until the weight, as the engine rounds."""

    def __init__(self, hidden_size: int, groups: int, eps: float) -> None:
        super().__init__()
        self.groups = groups
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        gated = (x * F.silu(at_least_float32(gate))).reshape(*x.shape[:-1], self.groups, -1)
        normed = gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + self.eps)
        result: torch.Tensor = self.weight * normed.flatten(-2).to(gate.dtype)
        return result


class MambaMixer(nn.Module):
    """[T, hidden] to [T, hidden]; convolution and state restart at each sequence's first token, state in float32."""

    def __init__(self, config: NemotronHConfig) -> None:
        super().__init__()
        self.heads = config.mamba_num_heads
        self.channels = config.mamba_head_dim
        self.groups = config.n_groups
        self.states = config.ssm_state_size
        self.inner = self.heads * self.channels
        self.conv_dim = self.inner + 2 * self.groups * self.states
        self.dt_limit = tuple(float(limit) for limit in config.time_step_limit)
        self.dt_range = (config.time_step_min, config.time_step_max, config.time_step_floor)
        self.chunk = min(config.chunk_size, _MAX_CHUNK)
        self.in_proj = nn.Linear(config.hidden_size, self.inner + self.conv_dim + self.heads, bias=config.use_bias)
        # Holds the convolution's parameters by their released names; `causal_conv` applies them, Conv1d cannot restart.
        self.conv1d = nn.Conv1d(
            self.conv_dim, self.conv_dim, config.conv_kernel, groups=self.conv_dim, bias=config.use_conv_bias
        )
        self.dt_bias = nn.Parameter(torch.ones(self.heads))
        self.decay = StateDecay(self.heads)
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = GatedRMSNorm(self.inner, self.groups, config.layer_norm_epsilon)
        self.out_proj = nn.Linear(self.inner, config.hidden_size, bias=config.use_bias)

    def forward(self, hidden_states: torch.Tensor, layout: PackedLayout) -> torch.Tensor:
        dtype = hidden_states.dtype
        gate, mixed, dt = torch.split(self.in_proj(hidden_states), [self.inner, self.conv_dim, self.heads], -1)
        convolved = causal_conv(mixed, self.conv1d.weight.squeeze(1), self.conv1d.bias, layout.position).to(dtype)
        x, b, c = torch.split(F.silu(convolved), [self.inner, self.groups * self.states, self.groups * self.states], -1)
        x = x.reshape(-1, self.heads, self.channels)
        step = F.softplus(at_least_float32(dt) + at_least_float32(self.dt_bias)).clamp(*self.dt_limit)
        scanned = chunk_scan(
            x,
            step,
            self.decay(),
            b.reshape(-1, self.groups, self.states),
            c.reshape(-1, self.groups, self.states),
            layout.sequence,
            self.chunk,
        )
        y = (scanned + at_least_float32(x) * at_least_float32(self.D).unsqueeze(-1)).to(dtype)
        mixed_back: torch.Tensor = self.out_proj(self.norm(y.flatten(-2), gate))
        return mixed_back
