"""Computes the Mamba2 mixer by vLLM's CPU operators. Shapes as in `language.mixing`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from omni_rl.models.nemotron_omni.language.compiled.mixer import compiled_mix
from omni_rl.models.nemotron_omni.language.layout import PackedLayout
from omni_rl.models.nemotron_omni.language.mamba import HeadShare, MambaMixer
from omni_rl.models.nemotron_omni.language.mixing import MixerSizes, MixerWeights
from omni_rl.models.nemotron_omni.layers import rms_normalise
from omni_rl.models.nemotron_omni.matched.forward import engine_forward
from omni_rl.models.nemotron_omni.matched.operators import ScanInput, convolve, scan, scan_as_decoded
from omni_rl.models.nemotron_omni.matched.sequences import sequences
from omni_rl.models.precision import at_least_float32


class MatchedMambaMixer(MambaMixer):
    """The mixer from [T, hidden] to [T, hidden], one sequence after the other."""

    scan: Callable[..., torch.Tensor] = staticmethod(scan)

    def forward(self, hidden_states: torch.Tensor, layout: PackedLayout) -> torch.Tensor:
        # Called once for all sequences: under FSDP it is a collective, and ranks have different numbers of sequences.
        weights, sizes = self._weights(HeadShare()), self._sizes(HeadShare())
        given = {name: tensor for name, tensor in vars(weights).items() if tensor is not None}
        engine, reference = (_with(mix, sizes, list(given)) for mix in (partial(_engine, self.scan), _reference))

        def mixed(rows: torch.Tensor) -> torch.Tensor:
            return engine_forward(engine, reference, self.in_proj(rows), *given.values())

        return torch.cat([self.out_proj(mixed(rows)) for rows in sequences(hidden_states, layout)])


class InvariantMatchedMambaMixer(MatchedMambaMixer):
    """The mixer with the state update of decode."""

    scan = staticmethod(scan_as_decoded)


def _with(mix: Callable[..., torch.Tensor], sizes: MixerSizes, names: Sequence[str]) -> Callable[..., torch.Tensor]:
    """Return `mix` as a function of tensors alone: the projected rows, and the weights of these names."""

    def of_tensors(projected: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        weights: dict[str, Any] = {"bias": None, **dict(zip(names, tensors, strict=True))}
        return mix(projected, MixerWeights(**weights), sizes)

    return of_tensors


def _reference(projected: torch.Tensor, weights: MixerWeights, sizes: MixerSizes) -> torch.Tensor:
    return compiled_mix(projected, weights, PackedLayout.of(torch.tensor([0, len(projected)])), sizes)


def _engine(
    scan: Callable[..., torch.Tensor], projected: torch.Tensor, weights: MixerWeights, sizes: MixerSizes
) -> torch.Tensor:
    """Return [T, I] for the projected rows [T, W] of one sequence."""
    gate, convolved, dt = torch.split(projected, [sizes.inner, sizes.convolved, sizes.heads], -1)
    state = sizes.groups * sizes.states
    x, b, c = torch.split(convolve(convolved, weights.taps, weights.bias), [sizes.inner, state, state], -1)
    x = x.view(len(x), sizes.heads, sizes.channels)
    b, c = (values.view(len(values), sizes.groups, sizes.states) for values in (b, c))
    y = scan(ScanInput(x, dt, weights.a, b, c, weights.d, weights.dt_bias), sizes).flatten(1)
    gated = y * F.silu(at_least_float32(gate))
    normed = rms_normalise(gated.view(len(y), sizes.groups, -1), sizes.eps)
    return weights.norm * normed.flatten(1).to(projected.dtype)
