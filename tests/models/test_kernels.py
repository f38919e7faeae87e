"""Which kernels the Mamba mixer runs on, that all of them compute the same, and what the GPU packages are handed.

The GPU packages are stood in for by functions that compute on a CPU from what the packages document: they show that the
arguments mean what we think they mean, not that a GPU computes them so.
"""

import sys
from dataclasses import replace
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from omni_rl.models.nemotron_omni.language.kernels import (
    CompiledKernels,
    CudaKernels,
    MambaKernels,
    TorchKernels,
    choose,
)
from omni_rl.models.nemotron_omni.language.layout import PackedLayout
from omni_rl.models.nemotron_omni.language.mixing import MixerSizes, MixerWeights

LENGTHS = [1, 37, 2, 16, 50]
CALLS: list[str] = []


def _parts(seq_idx: torch.Tensor) -> list[slice]:
    assert seq_idx.dtype == torch.int32
    assert seq_idx.shape[0] == 1
    bounds = [0, *((seq_idx[0].diff() != 0).nonzero().flatten() + 1).tolist(), seq_idx.shape[1]]
    return [slice(start, end) for start, end in pairwise(bounds)]


def _causal_conv1d_fn(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
    activation: str | None = None,
) -> torch.Tensor:
    """`x` (batch, dim, seqlen), channels last if `seq_idx` (batch, seqlen) is given."""
    CALLS.append("conv")
    assert seq_idx is not None
    assert x.stride(1) == 1
    assert activation == "silu"
    width = weight.shape[1]
    parts = [
        F.conv1d(x[:, :, part], weight.unsqueeze(1), bias, padding=width - 1, groups=len(weight))[
            :, :, : part.stop - part.start
        ]
        for part in _parts(seq_idx)
    ]
    return F.silu(torch.cat(parts, dim=2))


def _mamba_chunk_scan_combined(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,  # noqa: N803 - the package's name
    B: torch.Tensor,  # noqa: N803
    C: torch.Tensor,  # noqa: N803
    chunk_size: int,
    D: torch.Tensor | None = None,  # noqa: N803
    seq_idx: torch.Tensor | None = None,
    dt_softplus: bool = False,
) -> torch.Tensor:
    """`x` (batch, seqlen, nheads, headdim), `dt` (batch, seqlen, nheads), `B`, `C` (batch, seqlen, ngroups, dstate)."""
    CALLS.append("scan")
    assert D is not None
    assert seq_idx is not None
    assert not dt_softplus
    assert chunk_size == 16
    share = x.shape[2] // B.shape[2]
    keys, queries = B[0].repeat_interleave(share, 1), C[0].repeat_interleave(share, 1)
    rows = []
    for part in _parts(seq_idx):
        state = x.new_zeros(*x.shape[2:], B.shape[3])
        for t in range(part.start, part.stop):
            entering = (dt[0, t, :, None] * x[0, t]).unsqueeze(-1) * keys[t].unsqueeze(1)
            state = torch.exp(dt[0, t] * A)[:, None, None] * state + entering
            rows.append((state * queries[t].unsqueeze(1)).sum(-1) + D[:, None] * x[0, t])
    return torch.stack(rows).unsqueeze(0)


@pytest.fixture
def cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> CudaKernels:
    conv, scan = ModuleType("causal_conv1d"), ModuleType("mamba_ssm.ops.triton.ssd_combined")
    conv.causal_conv1d_fn = _causal_conv1d_fn  # type: ignore[attr-defined]
    scan.mamba_chunk_scan_combined = _mamba_chunk_scan_combined  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "causal_conv1d", conv)
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.triton.ssd_combined", scan)
    CALLS.clear()
    return CudaKernels()


def _layout(lengths: list[int]) -> PackedLayout:
    return PackedLayout.of(torch.tensor([0, *lengths]).cumsum(0))


SIZES = MixerSizes(heads=4, channels=3, groups=2, states=5, dt_limit=(0.0, float("inf")), eps=1e-5, chunk=16)


def _draw(dtype: torch.dtype, tokens: int) -> tuple[torch.Tensor, MixerWeights]:
    """What a mixer's first projection gives, and weights, the same numbers whatever the dtype."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    projected = draw(tokens, SIZES.inner + SIZES.convolved + SIZES.heads)
    taps, bias, dt_bias = draw(SIZES.convolved, 4), draw(SIZES.convolved), draw(SIZES.heads)
    a = -draw(SIZES.heads).detach().to(torch.promote_types(dtype, torch.float32)).abs()
    return projected, MixerWeights(taps, bias, dt_bias, a.requires_grad_(), draw(SIZES.heads), draw(SIZES.inner))


def _tensors(weights: MixerWeights) -> list[torch.Tensor]:
    assert weights.bias is not None
    return [weights.taps, weights.bias, weights.dt_bias, weights.a, weights.d, weights.norm]


def _both(
    kernels: MambaKernels, lengths: list[int], dtype: torch.dtype, sizes: MixerSizes = SIZES
) -> list[torch.Tensor]:
    """Output and all gradients, on the same numbers whatever the kernels."""
    projected, weights = _draw(dtype, sum(lengths))
    mixed = kernels.mix(projected, weights, _layout(lengths), sizes)
    pull = torch.randn(mixed.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    return [mixed, *torch.autograd.grad((mixed * pull).sum(), [projected, *_tensors(weights)])]


def _assert_same(one: list[torch.Tensor], two: list[torch.Tensor], tolerance: float) -> None:
    for first, second in zip(one, two, strict=True):
        torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("device", "dtype", "installed", "expected"),
    [
        ("cpu", torch.bfloat16, {"mamba_ssm", "causal_conv1d"}, CompiledKernels),
        ("cpu", torch.float64, set(), CompiledKernels),
        ("cuda", torch.bfloat16, {"mamba_ssm", "causal_conv1d"}, CudaKernels),
        ("cuda", torch.bfloat16, {"mamba_ssm"}, TorchKernels),
        ("cuda", torch.bfloat16, {"causal_conv1d"}, TorchKernels),
        ("cuda", torch.float32, {"mamba_ssm", "causal_conv1d"}, TorchKernels),
        ("cuda", torch.float64, {"mamba_ssm", "causal_conv1d"}, TorchKernels),
        ("meta", torch.bfloat16, {"mamba_ssm", "causal_conv1d"}, TorchKernels),
    ],
)
@pytest.mark.usefixtures("cuda_kernels")
def test_the_choice_follows_the_device_the_dtype_and_what_is_installed(
    device: str, dtype: torch.dtype, installed: set[str], expected: type[Any]
) -> None:
    assert type(choose(device, dtype, installed.__contains__)) is expected


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_compiled_kernels_equal_torch_with_gradients_on_any_number_of_threads(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        compiled = _both(CompiledKernels(), LENGTHS, torch.float64)
    finally:
        torch.set_num_threads(before)
    _assert_same(compiled, _both(TorchKernels(), LENGTHS, torch.float64), 1e-9)


def test_gpu_packages_are_told_where_sequences_begin(cuda_kernels: CudaKernels) -> None:
    _assert_same(_both(cuda_kernels, LENGTHS, torch.float64), _both(TorchKernels(), LENGTHS, torch.float64), 1e-9)
    assert CALLS == ["conv", "scan"]


def test_compiled_kernels_keep_to_the_limits_of_dt() -> None:
    sizes = replace(SIZES, dt_limit=(0.3, 1.5))
    compiled, plain = (_both(kernels, LENGTHS, torch.float64, sizes) for kernels in (CompiledKernels(), TorchKernels()))
    _assert_same(compiled, plain, 1e-9)


def test_float32_is_as_exact_as_torch_over_a_long_sequence() -> None:
    """The decay's gradient is a running sum from the end, which must not gather rounding on its way."""
    exact = _both(TorchKernels(), [2000], torch.float64)
    compiled, plain = (_both(kernels, [2000], torch.float32) for kernels in (CompiledKernels(), TorchKernels()))
    for reference, *others in zip(exact, compiled, plain, strict=True):
        ours, theirs = ((other.double() - reference).abs().max() / reference.abs().max() for other in others)
        assert ours < max(2 * theirs.item(), 1e-5)


def test_bfloat16_is_rounded_where_torch_rounds_it() -> None:
    compiled = _both(CompiledKernels(), LENGTHS, torch.bfloat16)
    plain = _both(TorchKernels(), LENGTHS, torch.bfloat16)
    assert compiled[0].dtype == torch.bfloat16
    assert (compiled[0] == plain[0]).float().mean() > 0.99
    for one, two in zip(compiled, plain, strict=True):
        assert one.dtype == two.dtype
        assert (one.double() - two.double()).norm() < 0.01 * two.double().norm()


def test_compiled_kernels_leave_parameters_as_fsdp_needs_them() -> None:
    """FSDP gives back what it gathered by resizing its storage, which a storage that NumPy has seen refuses."""
    projected, weights = _draw(torch.float32, 8)
    torch.autograd.backward(CompiledKernels().mix(projected, weights, _layout([3, 5]), SIZES).sum())
    assert all(parameter.untyped_storage().resizable() for parameter in _tensors(weights))
