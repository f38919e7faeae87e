"""Computes the Mamba2 state space scan in chunks, over packed sequences.

h[t] = exp(dt[t]·A)·h[t-1] + dt[t]·x[t] ⊗ B[t],  y[t] = C[t]·h[t],  h = 0 before each sequence's first token
(Dao and Gu 2024, "Transformers are SSMs", listing 1: chunks in matrix form, a recurrence between chunks.)

Chunks cut the packed tokens every Q, wherever sequences end: masks keep sequences apart, so short sequences cost no
padding. Shapes: T tokens, K chunks of Q, H heads of P channels, G groups of B and C, N states.
"""

import torch
from torch.nn import functional as F

from omni_rl.models.precision import at_least_float32


def chunk_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    sequence: torch.Tensor,
    chunk: int,
) -> torch.Tensor:
    """Return the scan, in float32 (float64 if the inputs are): [T, H, P].

    `x` is [T, H, P], `dt` [T, H], `a` [H], `b` and `c` [T, G, N]; `sequence` int64 [T] numbers the sequences.
    """
    tokens, heads, channels = x.shape
    groups, states = b.shape[1:]
    chunk = min(chunk, tokens)
    pad = -tokens % chunk
    chunks = (tokens + pad) // chunk

    sequence = F.pad(sequence, (0, pad), value=-1).view(chunks, chunk)
    dt = F.pad(dt, (0, 0, 0, pad)).view(chunks, chunk, heads).transpose(1, 2)  # KHQ
    x = F.pad(at_least_float32(x), (0, 0, 0, 0, 0, pad)).view(chunks, chunk, heads, channels).transpose(1, 2)  # KHQP
    x = x * dt.unsqueeze(-1)
    b = F.pad(at_least_float32(b), (0, 0, 0, 0, 0, pad)).view(chunks, chunk, groups, states).transpose(1, 2)  # KGQN
    c = F.pad(at_least_float32(c), (0, 0, 0, 0, 0, pad)).view(chunks, chunk, groups, states).transpose(1, 2)
    share = heads // groups  # heads that share one B and C

    coarse, fine = _prefix_sums(dt, a)
    decay = _decay(coarse, fine, sequence).view(chunks, groups, share, chunk, chunk)
    scores = (c @ b.transpose(2, 3)).unsqueeze(2)
    y = (decay * scores).view(chunks, heads, chunk, chunk) @ x
    if chunks == 1:
        return _unchunk(y, tokens)

    # What each chunk but the last adds to the state at its end, from the tokens of the sequence that is open there.
    end = sequence[:-1, -1:]
    since = torch.exp((coarse[:-1, :, -1:] - coarse[:-1]) + (fine[:-1, :, -1:] - fine[:-1]))
    weight = since * (sequence[:-1] == end).unsqueeze(1)
    added = (x[:-1] * weight.unsqueeze(-1)).transpose(2, 3) @ b[:-1].repeat_interleave(share, 1)  # KHPN

    # The recurrence between chunks; no state passes the end of a sequence.
    from_start = torch.exp(coarse + fine)  # KHQ
    across = from_start[1:-1, :, -1] * (end[1:] == end[:-1])
    states_before = [added[0]]
    for keep, new in zip(across, added[1:], strict=True):
        states_before.append(new + keep.view(-1, 1, 1) * states_before[-1])
    entered = torch.stack(states_before).transpose(2, 3)  # KHNP

    carried = from_start[1:] * (sequence[1:] == end).unsqueeze(1)
    continued = (c[1:].repeat_interleave(share, 1) @ entered) * carried.unsqueeze(-1)
    return _unchunk(torch.cat([y[:1], y[1:] + continued]), tokens)


def _prefix_sums(dt: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return running sums of dt·A within a chunk as float32 pairs (coarse, fine).

    Differences of two running sums are needed. In float32 alone one large step early in a chunk would cost every later
    difference its low bits; the pair keeps them, at a fraction of float64's price.
    """
    exact = (dt.double() * a.double().view(-1, 1)).cumsum(-1)
    coarse = exact.to(dt.dtype)
    fine = (exact.detach() - coarse.detach().double()).to(dt.dtype)
    return coarse, fine


def _decay(coarse: torch.Tensor, fine: torch.Tensor, sequence: torch.Tensor) -> torch.Tensor:
    """Return exp(sum[i] - sum[j]) where token i is j or follows it in its sequence, else 0: [K, H, Q, Q], row i, column
    j."""
    chunk = sequence.shape[1]
    past = torch.ones(chunk, chunk, dtype=torch.bool, device=sequence.device).tril()
    visible = (sequence.unsqueeze(-1) == sequence.unsqueeze(-2)) & past
    result: torch.Tensor = _Decay.apply(coarse, fine, ~visible.unsqueeze(1))  # type: ignore[no-untyped-call]
    return result


class _Decay(torch.autograd.Function):
    """Computes the decay in one buffer of Q x Q, in place; autograd would store four."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, coarse: torch.Tensor, fine: torch.Tensor, hidden: torch.Tensor
    ) -> torch.Tensor:
        decay = coarse.unsqueeze(-1) - coarse.unsqueeze(-2)
        decay += fine.unsqueeze(-1)
        decay -= fine.unsqueeze(-2)
        decay.masked_fill_(hidden, -torch.inf).exp_()
        ctx.save_for_backward(decay)
        return decay

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (decay,) = ctx.saved_tensors  # type: ignore[attr-defined]
        moved = grad * decay
        return moved.sum(-1) - moved.sum(-2), None, None


def _unchunk(y: torch.Tensor, tokens: int) -> torch.Tensor:
    chunks, heads, chunk, channels = y.shape
    return y.transpose(1, 2).reshape(chunks * chunk, heads, channels)[:tokens]
