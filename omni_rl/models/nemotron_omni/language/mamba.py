"""The Mamba2 mixer over packed sequences. Shapes: T packed tokens, H heads of P channels, G groups, N states."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import NemotronHConfig

from omni_rl.errors import ConfigError
from omni_rl.models.nemotron_omni.context_parallel import Context
from omni_rl.models.nemotron_omni.language.kernels import mamba_kernels
from omni_rl.models.nemotron_omni.language.layout import PackedLayout
from omni_rl.models.nemotron_omni.layers import at_least_float32, rms_normalise


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
        self.group_size = hidden_size // groups
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(self, x: torch.Tensor, gate: torch.Tensor, part: slice = slice(None)) -> torch.Tensor:
        """`part`: the channels that `x` and `gate` hold, whole groups of them."""
        gated = (x * F.silu(at_least_float32(gate))).reshape(*x.shape[:-1], -1, self.group_size)
        normed = rms_normalise(gated, self.eps)
        result: torch.Tensor = self.weight[part] * normed.flatten(-2).to(gate.dtype)
        return result


@dataclass(frozen=True)
class HeadShare:
    """Share `rank` of `ranks` equal shares of a mixer's heads, with the groups that belong to them."""

    rank: int = 0
    ranks: int = 1

    def of(self, size: int) -> slice:
        """This share of `size` channels."""
        return slice(self.rank * size // self.ranks, (self.rank + 1) * size // self.ranks)


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
        self.chunk = config.chunk_size
        self.in_proj = nn.Linear(config.hidden_size, self.inner + self.conv_dim + self.heads, bias=config.use_bias)
        # Holds the convolution's parameters by their released names; `kernels` applies them, Conv1d cannot restart.
        self.conv1d = nn.Conv1d(
            self.conv_dim, self.conv_dim, config.conv_kernel, groups=self.conv_dim, bias=config.use_conv_bias
        )
        self.dt_bias = nn.Parameter(torch.ones(self.heads))
        self.decay = StateDecay(self.heads)
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = GatedRMSNorm(self.inner, self.groups, config.layer_norm_epsilon)
        self.out_proj = nn.Linear(self.inner, config.hidden_size, bias=config.use_bias)

    def forward(self, hidden_states: torch.Tensor, layout: PackedLayout) -> torch.Tensor:
        projected: torch.Tensor = self.in_proj(hidden_states)
        if layout.context is None:
            mixed = self._mix(projected, layout, HeadShare())
        else:
            mixed = self._mix_over_context(projected, layout, layout.context)
        result: torch.Tensor = self.out_proj(mixed)
        return result

    def _mix(self, projected: torch.Tensor, layout: PackedLayout, share: HeadShare) -> torch.Tensor:
        """Convolution, scan and norm of one share of the heads: [T, in_proj's width] to [T, inner / ranks]."""
        kernels = mamba_kernels(projected.device, projected.dtype)
        inner, state, heads = share.of(self.inner), share.of(self.groups * self.states), share.of(self.heads)
        sizes = [self.inner, self.inner, self.groups * self.states, self.groups * self.states, self.heads]
        gate, x, b, c, dt = torch.split(projected, sizes, -1)
        taps = torch.split(self.conv1d.weight.squeeze(1), sizes[1:4])
        biases = [None] * 3 if self.conv1d.bias is None else torch.split(self.conv1d.bias, sizes[1:4])
        x, b, c = (
            kernels.convolve(values[:, part], tap[part], None if bias is None else bias[part], layout)
            for values, tap, bias, part in zip((x, b, c), taps, biases, (inner, state, state), strict=True)
        )
        x = x.reshape(len(projected), -1, self.channels)
        b, c = (values.reshape(len(projected), -1, self.states) for values in (b, c))
        step = F.softplus(at_least_float32(dt[:, heads]) + at_least_float32(self.dt_bias[heads])).clamp(*self.dt_limit)
        skip = at_least_float32(self.D[heads])
        y = kernels.scan(x, step, self.decay()[heads], b, c, skip, layout, self.chunk)
        normed: torch.Tensor = self.norm(y.flatten(-2), gate[:, inner], inner)
        return normed

    def _mix_over_context(self, projected: torch.Tensor, layout: PackedLayout, context: Context) -> torch.Tensor:
        if self.groups % context.ranks:
            raise ConfigError(
                f"{self.groups} Mamba groups cannot be shared by {context.ranks} context-parallel ranks; use a divisor"
            )
        share = self._mix(context.gather(projected), layout, HeadShare(context.rank, context.ranks))
        return context.scatter(context.gather_features(share))
