"""The chunked scan and the convolution against the recurrences that define them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_rl.models.nemotron_omni.language.conv import causal_conv
from omni_rl.models.nemotron_omni.language.layout import PackedLayout
from omni_rl.models.nemotron_omni.language.scan import chunk_scan


def _inputs(lengths: list[int], seed: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)
    x = torch.randn(tokens, 4, 3, generator=generator, dtype=dtype)
    dt = torch.rand(tokens, 4, generator=generator, dtype=dtype) * 2
    a = -torch.rand(4, generator=generator, dtype=dtype) * 4
    b = torch.randn(tokens, 2, 5, generator=generator, dtype=dtype)
    c = torch.randn(tokens, 2, 5, generator=generator, dtype=dtype)
    return x, dt, a, b, c


def _layout(lengths: list[int]) -> PackedLayout:
    return PackedLayout.of(torch.tensor([0, *lengths]).cumsum(0))


def _recurrence(
    lengths: list[int], x: torch.Tensor, dt: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor
) -> torch.Tensor:
    outputs, token = [], 0
    for length in lengths:
        state = torch.zeros(4, 3, 5, dtype=x.dtype)
        for _ in range(length):
            keys, queries = b[token].repeat_interleave(2, 0), c[token].repeat_interleave(2, 0)
            state = torch.exp(dt[token] * a)[:, None, None] * state
            state = state + (dt[token, :, None] * x[token])[:, :, None] * keys[:, None, :]
            outputs.append((state * queries[:, None, :]).sum(-1))
            token += 1
    return torch.stack(outputs)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    chunk=st.sampled_from([1, 2, 7, 16, 64]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_chunks_equal_the_recurrence_wherever_sequences_end(lengths: list[int], chunk: int, seed: int) -> None:
    x, dt, a, b, c = _inputs(lengths, seed)
    scanned = chunk_scan(x, dt, a, b, c, _layout(lengths).sequence, chunk)
    torch.testing.assert_close(scanned, _recurrence(lengths, x, dt, a, b, c), rtol=1e-9, atol=1e-9)


def test_one_large_step_does_not_cost_the_following_ones_their_precision() -> None:
    x, dt, a, b, c = _inputs([64], seed=1, dtype=torch.float32)
    dt[3] = 3000.0
    dt[4:] *= 0.001
    exact = _recurrence([64], *(tensor.double() for tensor in (x, dt, a, b, c)))
    scanned = chunk_scan(x, dt, a, b, c, torch.zeros(64, dtype=torch.int64), 64)
    assert ((scanned - exact).abs() / exact.abs().clamp(min=1)).max() < 1e-5


def test_gradients_of_the_scan_equal_finite_differences() -> None:
    lengths = [3, 1, 6]
    inputs = [tensor.requires_grad_() for tensor in _inputs(lengths, seed=2)]
    sequence = _layout(lengths).sequence
    assert torch.autograd.gradcheck(lambda x, dt, a, b, c: chunk_scan(x, dt, a, b, c, sequence, 4), inputs)


@pytest.mark.parametrize("bias", [True, False])
def test_convolution_restarts_at_every_sequence_and_its_gradients_are_right(bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = [1, 2, 3, 9]
    x = torch.randn(sum(lengths), 3, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    shift = torch.randn(3, generator=generator, dtype=torch.float64, requires_grad=True) if bias else None
    position = _layout(lengths).position
    alone = [
        torch.nn.functional.conv1d(part.T[None], weight[:, None], shift, padding=3, groups=3)[0, :, : len(part)].T
        for part in torch.split(x, lengths)
    ]
    torch.testing.assert_close(causal_conv(x, weight, shift, position), torch.cat(alone))
    inputs = [tensor for tensor in (x, weight, shift) if tensor is not None]
    assert torch.autograd.gradcheck(lambda x, w, b=None: causal_conv(x, w, b, position), inputs)
