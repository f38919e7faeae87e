"""What lies between a Mamba2 mixer's projections, at the released width: torch against the installed CUDA kernels."""

from contextlib import suppress
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from omni_rl.bench.gpu.clock import seconds
from omni_rl.models.nemotron_omni.language.kernels import CudaKernels, MambaKernels, TorchKernels
from omni_rl.models.nemotron_omni.language.layout import PackedLayout
from omni_rl.models.nemotron_omni.language.mixing import MixerSizes, MixerWeights
from omni_rl.models.nemotron_omni.layers import at_least_float32
from omni_rl.models.nemotron_omni.released_shape import RELEASED
from omni_rl.train.device import own_device

LENGTHS = (1500, 37, 2047, 512)  # tokens of the packed sequences; none ends where a chunk does


def measure(_: Path) -> dict[str, Any]:
    """Relative L2 errors against torch in float64, forward and of the input's gradient, and milliseconds of both."""
    device = own_device("cuda")
    language = RELEASED["llm_config"]
    sizes = MixerSizes(
        heads=language["mamba_num_heads"],
        channels=language["mamba_head_dim"],
        groups=language["n_groups"],
        states=language["ssm_state_size"],
        dt_limit=(0.0, float("inf")),
        eps=1e-5,
        chunk=language["chunk_size"],
    )
    layout = PackedLayout.of(torch.tensor([0, *LENGTHS], device=device).cumsum(0))
    torch.manual_seed(0)
    projected = torch.randn(sum(LENGTHS), sizes.inner + sizes.convolved + sizes.heads, device=device)
    weights = _weights(sizes, language["conv_kernel"], device)
    exact = _run(TorchKernels(), projected.double(), _cast(weights, torch.float64), layout, sizes)
    found: dict[str, Any] = {"tokens": sum(LENGTHS)}
    for dtype in (torch.bfloat16, torch.float32):
        # Rounded inputs, so that an error is the implementation's.
        inputs, cast = projected.to(dtype), _cast(weights, dtype)
        same = (
            exact
            if dtype == torch.float32
            else _run(TorchKernels(), inputs.double(), _cast(cast, torch.float64), layout, sizes)
        )
        found[str(dtype).removeprefix("torch.")] = {
            name: _measured(kernels, inputs, cast, layout, sizes, same) for name, kernels in _implementations().items()
        }
    return found | {"experts": _experts(sum(LENGTHS), device)}


def _experts(tokens: int, device: torch.device) -> dict[str, float]:
    """Milliseconds of one of the two products of a MoE layer in bfloat16, choices evenly random: an expert after the
    other, as `Experts` has it, and by torch's grouped product."""
    language = RELEASED["llm_config"]
    experts, rows = language["n_routed_experts"], tokens * language["num_experts_per_tok"]
    sides = language["hidden_size"], language["moe_intermediate_size"]
    given = torch.randn(rows, sides[0], device=device, dtype=torch.bfloat16)
    weights = torch.randn(experts, *sides, device=device, dtype=torch.bfloat16)
    ends = torch.randint(experts, (rows,), device=device).bincount(minlength=experts).cumsum(0)
    out = given.new_empty(rows, sides[1])

    def one_by_one() -> None:
        for expert, (start, end) in enumerate(pairwise([0, *ends.tolist()])):
            torch.mm(given[start:end], weights[expert], out=out[start:end])

    def grouped() -> torch.Tensor:
        return F.grouped_mm(given, weights, offs=ends.int())

    return {
        "one_by_one_milliseconds": round(1e3 * seconds(one_by_one), 3),
        "grouped_milliseconds": round(1e3 * seconds(grouped), 3),
    }


def _implementations() -> dict[str, MambaKernels]:
    found: dict[str, MambaKernels] = {"TorchKernels": TorchKernels()}
    with suppress(ImportError):
        found["CudaKernels"] = CudaKernels()
    return found


def _weights(sizes: MixerSizes, taps: int, device: torch.device) -> MixerWeights:
    return MixerWeights(
        taps=torch.randn(sizes.convolved, taps, device=device) / 2,
        bias=torch.randn(sizes.convolved, device=device) / 8,
        dt_bias=torch.randn(sizes.heads, device=device) - 4,
        a=-torch.arange(1, sizes.heads + 1, device=device, dtype=torch.float32),
        d=torch.ones(sizes.heads, device=device),
        norm=torch.ones(sizes.inner, device=device),
    )


def _cast(weights: MixerWeights, dtype: torch.dtype) -> MixerWeights:
    """All but A, which is float32 beside rounded weights."""
    cast = {field.name: getattr(weights, field.name).to(dtype) for field in fields(weights)}
    return replace(weights, **cast | ({} if dtype == torch.float64 else {"a": weights.a}))


def _run(
    kernels: MambaKernels, projected: torch.Tensor, weights: MixerWeights, layout: PackedLayout, sizes: MixerSizes
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output, and the gradient of its sum of squares by the input."""
    leaf = projected.detach().clone().requires_grad_()
    out = kernels.mix(leaf, weights, layout, sizes)
    (gradient,) = torch.autograd.grad(at_least_float32(out).square().sum(), leaf)
    return out.detach(), gradient


def _measured(
    kernels: MambaKernels,
    projected: torch.Tensor,
    weights: MixerWeights,
    layout: PackedLayout,
    sizes: MixerSizes,
    exact: tuple[torch.Tensor, torch.Tensor],
) -> dict[str, float]:
    out, gradient = _run(kernels, projected, weights, layout, sizes)

    def forward() -> object:
        with torch.no_grad():
            return kernels.mix(projected, weights, layout, sizes)

    return {
        "error": _error(out, exact[0]),
        "gradient_error": _error(gradient, exact[1]),
        "forward_milliseconds": round(1e3 * seconds(forward), 3),
        "both_milliseconds": round(1e3 * seconds(lambda: _run(kernels, projected, weights, layout, sizes)), 3),
    }


def _error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())
