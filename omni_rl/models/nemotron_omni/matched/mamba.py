"""The Mamba2 mixer by vLLM's CPU operators. Shapes as in `language.mixing`."""

from functools import partial

import torch
from torch.nn import functional as F

from omni_rl.models.nemotron_omni.language.compiled.mixer import compiled_mix
from omni_rl.models.nemotron_omni.language.layout import PackedLayout
from omni_rl.models.nemotron_omni.language.mamba import HeadShare, MambaMixer
from omni_rl.models.nemotron_omni.language.mixing import MixerSizes, MixerWeights
from omni_rl.models.nemotron_omni.layers import at_least_float32, rms_normalise
from omni_rl.models.nemotron_omni.matched.forward import engine_forward
from omni_rl.models.nemotron_omni.matched.operators import convolve, scan
from omni_rl.models.nemotron_omni.matched.sequences import sequences


class MatchedMambaMixer(MambaMixer):
    """[T, hidden] to [T, hidden], one sequence after the other."""

    def forward(self, hidden_states: torch.Tensor, layout: PackedLayout) -> torch.Tensor:
        # Once for all sequences: under FSDP it is a collective, and ranks have different numbers of them.
        weights, sizes = self._weights(HeadShare()), self._sizes(HeadShare())
        parts = sequences(hidden_states, layout)
        return torch.cat([self.out_proj(_mix(self.in_proj(rows), weights, sizes)) for rows in parts])


def _mix(projected: torch.Tensor, weights: MixerWeights, sizes: MixerSizes) -> torch.Tensor:
    """[T, W] of one sequence to [T, I]."""
    tensors = [weights.taps, weights.dt_bias, weights.a, weights.d, weights.norm]
    if weights.bias is not None:
        tensors.append(weights.bias)
    return engine_forward(partial(_engine, sizes), partial(_reference, sizes), projected, *tensors)


def _reference(
    sizes: MixerSizes,
    projected: torch.Tensor,
    taps: torch.Tensor,
    dt_bias: torch.Tensor,
    a: torch.Tensor,
    d: torch.Tensor,
    norm: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    layout = PackedLayout.of(torch.tensor([0, len(projected)]))
    return compiled_mix(projected, MixerWeights(taps, bias, dt_bias, a, d, norm), layout, sizes)


def _engine(
    sizes: MixerSizes,
    projected: torch.Tensor,
    taps: torch.Tensor,
    dt_bias: torch.Tensor,
    a: torch.Tensor,
    d: torch.Tensor,
    norm: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    gate, convolved, dt = torch.split(projected, [sizes.inner, sizes.convolved, sizes.heads], -1)
    state = sizes.groups * sizes.states
    x, b, c = torch.split(convolve(convolved, taps, bias), [sizes.inner, state, state], -1)
    x = x.view(len(x), sizes.heads, sizes.channels)
    b, c = (values.view(len(values), sizes.groups, sizes.states) for values in (b, c))
    y = scan(x, dt, a, b, c, d, dt_bias, sizes.dt_limit, sizes.chunk).flatten(1)
    gated = y * F.silu(at_least_float32(gate))
    normed = rms_normalise(gated.view(len(y), sizes.groups, -1), sizes.eps)
    return norm * normed.flatten(1).to(projected.dtype)
