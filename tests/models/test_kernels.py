"""Which kernels the Mamba mixer runs on, that all of them compute the same, and what the GPU packages are handed.

The GPU packages are stood in for by functions that compute on a CPU from what the packages document: they show that the
arguments mean what we think they mean, not that a GPU computes them so.
"""

import sys
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


def _both(kernels: MambaKernels, lengths: list[int], dtype: torch.dtype) -> list[torch.Tensor]:
    """Outputs and all gradients of both operations, on the same numbers whatever the kernels."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()

    tokens, layout = sum(lengths), _layout(lengths)
    x, weight, bias = draw(tokens, 12), draw(12, 4), draw(12)
    wide, dt, a, d = draw(tokens, 4, 3), draw(tokens, 4), draw(4), draw(4)
    keys, queries = draw(tokens, 2, 5), draw(tokens, 2, 5)
    convolved = kernels.convolve(x, weight, bias, layout)
    scanned = kernels.scan(wide, F.softplus(dt), -a.exp(), keys, queries, d, layout, 16)
    pull = torch.randn(tokens, 12, generator=generator, dtype=dtype)
    loss = (convolved * pull).sum() + (scanned.flatten(1) * pull).sum()
    return [convolved, scanned, *torch.autograd.grad(loss, [x, weight, bias, wide, dt, a, d, keys, queries])]


def _assert_same(one: list[torch.Tensor], two: list[torch.Tensor], tolerance: float) -> None:
    for first, second in zip(one, two, strict=True):
        torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("device", "double", "installed", "expected"),
    [
        ("cpu", False, {"mamba_ssm", "causal_conv1d"}, CompiledKernels),
        ("cpu", True, set(), CompiledKernels),
        ("cuda", False, {"mamba_ssm", "causal_conv1d"}, CudaKernels),
        ("cuda", False, {"mamba_ssm"}, TorchKernels),
        ("cuda", False, {"causal_conv1d"}, TorchKernels),
        ("cuda", True, {"mamba_ssm", "causal_conv1d"}, TorchKernels),
        ("meta", False, {"mamba_ssm", "causal_conv1d"}, TorchKernels),
    ],
)
@pytest.mark.usefixtures("cuda_kernels")
def test_the_choice_follows_the_device_and_what_is_installed(
    device: str, double: bool, installed: set[str], expected: type[Any]
) -> None:
    assert type(choose(device, double, installed.__contains__)) is expected


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


def test_compiled_kernels_keep_their_state_in_float32_for_bfloat16_inputs() -> None:
    layout = _layout([200])
    x, keys = torch.ones(200, 1, 2, dtype=torch.bfloat16), torch.ones(200, 1, 1, dtype=torch.bfloat16)
    step, still = torch.ones(200, 1), torch.zeros(1)
    y = CompiledKernels().scan(x, step, still, keys, keys, still, layout, 16)
    # A bfloat16 state could not count beyond 256, and would step by 2 from 128 on.
    assert y.dtype == torch.bfloat16
    assert torch.equal(y[:, 0, 0].float(), torch.arange(1, 201).bfloat16().float())


def test_compiled_kernels_leave_parameters_as_fsdp_needs_them() -> None:
    """FSDP gives back what it gathered by resizing its storage, which a storage that NumPy has seen refuses."""
    weight, bias, d = (torch.randn(shape, requires_grad=True) for shape in ((12, 4), (12,), (4,)))
    layout = _layout([3, 5])
    convolved = CompiledKernels().convolve(torch.randn(8, 12), weight, bias, layout)
    wide, dt, keys = torch.randn(8, 4, 3), torch.rand(8, 4), torch.randn(8, 2, 5)
    scanned = CompiledKernels().scan(wide, dt, -torch.ones(4), keys, keys, d, layout, 16)
    torch.autograd.backward(convolved.sum() + scanned.sum())
    assert all(parameter.untyped_storage().resizable() for parameter in (weight, bias, d))
