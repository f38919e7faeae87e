"""Computes in torch what a Mamba2 mixer does between its two projections, with convolution and scan left open.

Shapes: T packed tokens, K taps, H heads of P channels, I = H·P; G groups of N states; D = I + 2·G·N convolved channels;
W = I + D + H columns: gate, x, B, C, dt.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from omni_rl.models.nemotron_omni.language.layout import PackedLayout
from omni_rl.models.nemotron_omni.layers import rms_normalise
from omni_rl.models.precision import at_least_float32


@dataclass(frozen=True)
class MixerSizes:
    """The numbers H, P, G and N; the limits of dt; the norm's eps; tokens of a chunk, for scans that have chunks."""

    heads: int
    channels: int
    groups: int
    states: int
    dt_limit: tuple[float, float]
    eps: float
    chunk: int

    @property
    def inner(self) -> int:
        return self.heads * self.channels

    @property
    def convolved(self) -> int:
        return self.inner + 2 * self.groups * self.states


@dataclass(frozen=True)
class MixerWeights:
    """The weights: `taps` [D, K], `bias` [D] or None; `dt_bias` [H]; `a` float32 [H], A itself; `d` [H]; `norm` [I]."""

    taps: torch.Tensor
    bias: torch.Tensor | None
    dt_bias: torch.Tensor
    a: torch.Tensor
    d: torch.Tensor
    norm: torch.Tensor


class TorchMixing(ABC):
    """Does `mix` by a convolution and a scan; both restart at every sequence's first token and return x's dtype."""

    @abstractmethod
    def convolve(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, layout: PackedLayout
    ) -> torch.Tensor:
        """Return silu of the causal depthwise convolution of `x` [T, D] with `weight` [D, K] and `bias` [D]: [T, D]."""

    @abstractmethod
    def scan(
        self,
        x: torch.Tensor,
        dt: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        c: torch.Tensor,
        d: torch.Tensor,
        layout: PackedLayout,
        chunk: int,
    ) -> torch.Tensor:
        """Return the state space scan plus D·x, [T, H, P]; state in float32.

        `x` is [T, H, P]; `dt` float32 [T, H], after bias, softplus and limits; `a`, `d` float32 [H]; `b`, `c` [T, G,
        N].
        """

    def mix(
        self, projected: torch.Tensor, weights: MixerWeights, layout: PackedLayout, sizes: MixerSizes
    ) -> torch.Tensor:
        """Return [T, I] for `projected` [T, W], in the same dtype."""
        gate, convolved, dt = torch.split(projected, [sizes.inner, sizes.convolved, sizes.heads], -1)
        convolved = self.convolve(convolved, weights.taps, weights.bias, layout)
        state = sizes.groups * sizes.states
        x, b, c = torch.split(convolved, [sizes.inner, state, state], -1)
        x = x.reshape(len(x), sizes.heads, sizes.channels)
        b, c = (values.reshape(len(values), sizes.groups, sizes.states) for values in (b, c))
        # dt is finished here, the same for every implementation.
        step = F.softplus(at_least_float32(dt) + at_least_float32(weights.dt_bias)).clamp(*sizes.dt_limit)
        y = self.scan(x, step, weights.a, b, c, at_least_float32(weights.d), layout, sizes.chunk).flatten(-2)
        # The gate before the norm; float32 until the weight, as the engine rounds.
        gated = (y * F.silu(at_least_float32(gate))).view(len(y), sizes.groups, -1)
        return weights.norm * rms_normalise(gated, sizes.eps).flatten(-2).to(projected.dtype)
