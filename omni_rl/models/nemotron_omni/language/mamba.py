"""Computes the Mamba2 mixer over packed sequences. Shapes: T packed tokens, H heads of P channels, G groups, N
states."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import NemotronHConfig

from omni_rl.errors import ConfigError
from omni_rl.models.nemotron_omni.context_parallel import Context
from omni_rl.models.nemotron_omni.language.kernels import mamba_kernels
from omni_rl.models.nemotron_omni.language.layout import PackedLayout
from omni_rl.models.nemotron_omni.language.mixing import MixerSizes, MixerWeights
from omni_rl.models.nemotron_omni.layers import exactly
from omni_rl.models.precision import at_least_float32


class StateDecay(nn.Module):
    """Holds `A_log` [H] and returns A = -exp(A_log), in float32 whatever the model computes in, as the engine does.

    It is a module so that it can be an FSDP unit of its own, out of the block's mixed precision.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.A_log = nn.Parameter(torch.zeros(heads, dtype=torch.float32))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "StateDecay":
        """Do what `to`, `half` and the like do, but without rounding A_log."""
        super()._apply(exactly(fn), recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self) -> torch.Tensor:
        return -torch.exp(at_least_float32(self.A_log))


class GatedRMSNorm(nn.Module):
    """Holds the weight of the mixer's norm by its released name; `kernels` applies it."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))


@dataclass(frozen=True)
class HeadShare:
    """Share `rank` of `ranks` equal shares of a mixer's heads, with the groups that belong to them."""

    rank: int = 0
    ranks: int = 1

    def of(self, size: int) -> slice:
        """Return this share of `size` channels."""
        return slice(self.rank * size // self.ranks, (self.rank + 1) * size // self.ranks)

    def among(self, *sizes: int) -> torch.Tensor:
        """Return the indices of this share of each of several sets of channels that lie one after the other."""
        starts = itertools.accumulate(sizes, initial=0)
        return torch.cat(
            [torch.arange(size)[self.of(size)] + start for size, start in zip(sizes, starts, strict=False)]
        )


class MambaMixer(nn.Module):
    """The mixer from [T, hidden] to [T, hidden]; convolution and state restart at each sequence's first token, state in
    float32."""

    def __init__(self, config: NemotronHConfig) -> None:
        super().__init__()
        self.heads = config.mamba_num_heads
        self.channels = config.mamba_head_dim
        self.groups = config.n_groups
        self.states = config.ssm_state_size
        self.inner = self.heads * self.channels
        self.conv_dim = self.inner + 2 * self.groups * self.states
        low, high = config.time_step_limit
        self.dt_limit = float(low), float(high)
        self.dt_range = (config.time_step_min, config.time_step_max, config.time_step_floor)
        self.chunk = config.chunk_size
        self.in_proj = nn.Linear(config.hidden_size, self.inner + self.conv_dim + self.heads, bias=config.use_bias)
        # Holds the convolution's parameters by their released names; `kernels` applies them: Conv1d cannot restart.
        self.conv1d = nn.Conv1d(
            self.conv_dim, self.conv_dim, config.conv_kernel, groups=self.conv_dim, bias=config.use_conv_bias
        )
        self.dt_bias = nn.Parameter(torch.ones(self.heads))
        self.decay = StateDecay(self.heads)
        self.D = nn.Parameter(torch.ones(self.heads))
        self.eps = config.layer_norm_epsilon
        self.norm = GatedRMSNorm(self.inner)
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
        """Apply convolution, scan and norm of one share of the heads: [T, in_proj's width] to [T, inner / ranks]."""
        if share.ranks > 1:
            state = self.groups * self.states
            projected = projected[:, share.among(self.inner, self.inner, state, state, self.heads)]
        kernels = mamba_kernels(projected.device, projected.dtype)
        return kernels.mix(projected, self._weights(share), layout, self._sizes(share))

    def _weights(self, share: HeadShare) -> MixerWeights:
        inner, heads = share.of(self.inner), share.of(self.heads)
        taps, bias = self.conv1d.weight.squeeze(1), self.conv1d.bias
        if share.ranks > 1:
            state = self.groups * self.states
            channels = share.among(self.inner, state, state)
            taps, bias = taps[channels], None if bias is None else bias[channels]
        return MixerWeights(
            taps, bias, self.dt_bias[heads], self.decay()[heads], self.D[heads], self.norm.weight[inner]
        )

    def _sizes(self, share: HeadShare) -> MixerSizes:
        return MixerSizes(
            self.heads // share.ranks,
            self.channels,
            self.groups // share.ranks,
            self.states,
            self.dt_limit,
            self.eps,
            self.chunk,
        )

    def _mix_over_context(self, projected: torch.Tensor, layout: PackedLayout, context: Context) -> torch.Tensor:
        if self.groups % context.ranks:
            raise ConfigError(
                f"{self.groups} Mamba groups cannot be shared by {context.ranks} context-parallel ranks; use a divisor"
            )
        share = self._mix(context.gather(projected), layout, HeadShare(context.rank, context.ranks))
        return context.scatter(context.gather_features(share))
