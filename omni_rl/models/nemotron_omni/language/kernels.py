"""Decides, in this one place, what the Mamba mixer runs on between its projections.

CPU: compiled loops. CUDA, bfloat16: causal-conv1d's and mamba-ssm's kernels where both are installed (signatures of
causal-conv1d 1.7 and mamba-ssm 2.3). Elsewhere, and in float32 on a GPU: torch.

See `mixing` for the shapes.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol

import torch
from torch.nn import functional as F

from omni_rl.models.nemotron_omni.language.compiled.mixer import compiled_mix
from omni_rl.models.nemotron_omni.language.conv import causal_conv
from omni_rl.models.nemotron_omni.language.layout import PackedLayout
from omni_rl.models.nemotron_omni.language.mixing import MixerSizes, MixerWeights, TorchMixing
from omni_rl.models.nemotron_omni.language.scan import chunk_scan
from omni_rl.models.precision import at_least_float32

# Beyond this size torch's Q x Q blocks cost more than the states between chunks that they save.
_MAX_TORCH_CHUNK = 32


class MambaKernels(Protocol):
    """Computes what lies between a Mamba2 mixer's projections."""

    def mix(
        self, projected: torch.Tensor, weights: MixerWeights, layout: PackedLayout, sizes: MixerSizes
    ) -> torch.Tensor:
        """Return [T, I] for `projected` [T, W], in the same dtype; state in float32, restarted at every sequence's
        first token."""
        ...


class TorchKernels(TorchMixing):
    """The kernels for any device, in torch."""

    def convolve(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, layout: PackedLayout
    ) -> torch.Tensor:
        # The engine on CPU rounds before the activation.
        return F.silu(causal_conv(x, weight, bias, layout.position).to(x.dtype))

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
        y = chunk_scan(x, dt, a, b, c, layout.sequence, min(chunk, _MAX_TORCH_CHUNK))
        return (y + at_least_float32(x) * d.unsqueeze(-1)).to(x.dtype)


class CompiledKernels:
    """The kernels for the CPU: one pass of compiled loops; the scan has no chunks."""

    def mix(
        self, projected: torch.Tensor, weights: MixerWeights, layout: PackedLayout, sizes: MixerSizes
    ) -> torch.Tensor:
        return compiled_mix(projected, weights, layout, sizes)


class CudaKernels(TorchMixing):
    """The kernels of causal-conv1d and mamba-ssm: a batch of one row, whose sequences `seq_idx` int32 [1, T] tells
    apart."""

    def __init__(self) -> None:
        self._conv = import_module("causal_conv1d").causal_conv1d_fn
        self._scan = import_module("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined

    def convolve(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, layout: PackedLayout
    ) -> torch.Tensor:
        # [1, D, T] with channels last in memory, the only layout for which the kernel takes seq_idx.
        rows = x.contiguous().T.unsqueeze(0)
        y: torch.Tensor = self._conv(rows, weight.contiguous(), bias, seq_idx=_seq_idx(layout), activation="silu")
        return y.squeeze(0).T

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
        rows = (tensor.contiguous().unsqueeze(0) for tensor in (x, dt))
        keys, queries = (tensor.contiguous().unsqueeze(0) for tensor in (b, c))
        y: torch.Tensor = self._scan(*rows, a, keys, queries, chunk, D=d, seq_idx=_seq_idx(layout), dt_softplus=False)
        return y.squeeze(0)


def mamba_kernels(device: torch.device, dtype: torch.dtype) -> MambaKernels:
    """Return what tensors of `dtype` on `device` run on."""
    return _chosen(device.type, dtype)


@cache
def _chosen(device_type: str, dtype: torch.dtype) -> MambaKernels:
    return choose(device_type, dtype, lambda package: find_spec(package) is not None)


def choose(device_type: str, dtype: torch.dtype, installed: Callable[[str], bool]) -> MambaKernels:
    """Return the kernels by the rule above, with `installed` telling whether a package can be imported."""
    if device_type == "cpu":
        return CompiledKernels()
    # mamba-ssm multiplies float32 in TF32, Triton's default: ten bits of mantissa, where float32 is what was asked for.
    if device_type == "cuda" and dtype == torch.bfloat16 and installed("mamba_ssm") and installed("causal_conv1d"):
        return CudaKernels()
    return TorchKernels()


def _seq_idx(layout: PackedLayout) -> torch.Tensor:
    return layout.sequence.to(torch.int32).unsqueeze(0)
