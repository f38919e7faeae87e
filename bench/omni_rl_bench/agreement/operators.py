"""Compares vLLM's operators for decoding with those for prefill, on the same random inputs: where its own gap arises.

Shapes: T tokens; H heads of P channels, J key heads; D convolved channels, K taps; G groups of N states; E experts.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from omni_rl.config import SMALL_CHECKPOINT
from omni_rl.kinds import KINDS
from omni_rl.media.renderer import Renderer
from omni_rl.models.nemotron_omni.language.mixing import MixerSizes
from omni_rl.models.nemotron_omni.matched import operators as prefill
from omni_rl.rollout.engine import RolloutEngine
from omni_rl.rollout.settings import EngineSettings
from omni_rl.rollout.types import SamplingSettings
from omni_rl.tasks.samples import demo_prompts
from omni_rl_bench.agreement.rate import rate
from omni_rl_bench.result import Goal, write_result

TOKENS = 128
HEADS, CHANNELS, KEY_HEADS = 8, 32, 2
GROUPS, STATES, TAPS, EXPERTS, HIDDEN = 2, 32, 4, 8, 128
CONVOLVED = HEADS * CHANNELS + 2 * GROUPS * STATES
DTYPES = ("bfloat16", "float32")
PROMPTS, ANSWER = 4, 32
"""The prompts of each kind, and the tokens that are sampled for each."""


def bench_operators(out: Path) -> Path:
    """Compare the operators in both dtypes, with one thread, and write `operators.json`."""
    torch.set_num_threads(1)
    parities = {dtype: decode_parities(getattr(torch, dtype)) for dtype in DTYPES}
    engines = {name: _engine(invariant) for name, invariant in (("vllm", False), ("batch_invariant", True))}
    goals = [
        Goal(
            "bfloat16, batch_invariant: prefill against decode, max abs d",
            engines["batch_invariant"]["prefill_against_decode_max"],
            0.0,
            "lower",
        )
    ]
    results = {"decode_equal_to_prefill": parities, "engines": engines}
    return write_result(out / "operators.json", "omni-rl bench operators", goals, results)


def _engine(invariant: bool) -> dict[str, float]:
    """Return how far apart prefill alone and a batch's decode lie in bfloat16, and tokens a second of processor
    time."""
    settings = EngineSettings(model=SMALL_CHECKPOINT, dtype="bfloat16", batch_invariant=invariant)
    engine = RolloutEngine(settings)
    try:
        prompts = Renderer(engine.llm_engine).render([p for kind in KINDS for p in demo_prompts(kind, PROMPTS, 0)])
        sampling = SamplingSettings(max_tokens=ANSWER, ignore_eos=True)
        answers = engine.sample(prompts, sampling)
        prefill = engine.score(answers)
        d = np.concatenate([score.logprobs - answer.logprobs for score, answer in zip(prefill, answers, strict=True)])
        scored = sum(len(answer.prompt.ids) + len(answer.ids) for answer in answers)
        return {
            "tokens": d.size,
            "prefill_against_decode_mean": float(np.abs(d).mean()),
            "prefill_against_decode_max": float(np.abs(d).max()),
            "sampled_tokens_per_second": rate(len(prompts) * ANSWER, lambda: engine.sample(prompts, sampling)),
            "scored_tokens_per_second": rate(scored, lambda: engine.score(answers)),
        }
    finally:
        engine.close()


def decode_parities(dtype: torch.dtype) -> dict[str, float]:
    """Return the share of elements that are the same bit for bit when a sequence is computed at once and token by
    token."""
    prefill.operators()
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(shape, generator=random).to(of)

    rows = normal(TOKENS, HIDDEN)
    weight, gate = normal(HIDDEN, HIDDEN), normal(EXPERTS, HIDDEN, of=torch.float32)
    return {
        "attention": _attention(normal),
        "convolution": _convolution(normal),
        "state space scan": _scan(normal),
        "linear": _by_row(lambda part: F.linear(part, weight), rows),
        "router's float32 linear": _by_row(lambda part: F.linear(part.float(), gate), rows),
        "router's sigmoid": _by_row(torch.sigmoid, normal(TOKENS, EXPERTS, of=torch.float32)),
        "log-softmax": _by_row(lambda part: part.log_softmax(-1), normal(TOKENS, 780, of=torch.float32)),
    }


def _equal(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one == other).double().mean())


def _by_row(function: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> float:
    return _equal(torch.cat([function(row) for row in rows.split(1)]), function(rows))  # type: ignore[no-untyped-call]


def _attention(normal: Callable[..., torch.Tensor]) -> float:
    """Compare attention: the last token's row of a prefill of t tokens is what a decoding step computes from t keys."""
    query, key, value = normal(TOKENS, HEADS, CHANNELS), *(normal(TOKENS, KEY_HEADS, CHANNELS) for _ in range(2))
    whole = prefill.attend(query, key, value)
    steps = [prefill.attend(query[t : t + 1], key[: t + 1], value[: t + 1]) for t in range(TOKENS)]
    return _equal(torch.cat(steps), whole)


def _convolution(normal: Callable[..., torch.Tensor]) -> float:
    step = import_module("vllm.model_executor.layers.mamba.ops.causal_conv1d").causal_conv1d_update
    x, taps, bias = normal(TOKENS, CONVOLVED), normal(CONVOLVED, TAPS), normal(CONVOLVED)
    # Slot 0 is vLLM's null block.
    state, slot = x.new_zeros(2, TAPS - 1, CONVOLVED).transpose(1, 2), torch.ones(1, dtype=torch.int32)
    steps = [step(x[t : t + 1].clone(), state, taps, bias, "silu", conv_state_indices=slot) for t in range(TOKENS)]
    return _equal(torch.cat(steps), prefill.convolve(x, taps, bias))


def _scan(normal: Callable[..., torch.Tensor]) -> float:
    x, dt, dt_bias, d = normal(TOKENS, HEADS, CHANNELS), normal(TOKENS, HEADS), normal(HEADS), normal(HEADS)
    b, c = (normal(TOKENS, GROUPS, STATES) for _ in range(2))
    a = -normal(HEADS, of=torch.float32).exp()
    state, steps = torch.zeros(1, HEADS, CHANNELS, STATES), torch.empty_like(x)
    edges = torch.tensor([0, 1], dtype=torch.int32)
    for t in range(TOKENS):
        row = slice(t, t + 1)
        token = prefill.ScanInput(x[row], dt[row], a, b[row], c[row], d, dt_bias)
        prefill.update_states(state, edges, token, steps[row])
    sizes = MixerSizes(HEADS, CHANNELS, GROUPS, STATES, (0.0, float("inf")), 0.0, TOKENS)
    return _equal(steps, prefill.scan(prefill.ScanInput(x, dt, a, b, c, d, dt_bias), sizes))
