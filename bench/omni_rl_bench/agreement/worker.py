"""Runs in the agreement benchmark's process: one engine, and every training side on what it sampled.

`python -m omni_rl_bench.agreement.worker JSON`, with the arguments of `measure`, prints one line of JSON.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.comparison import compare_step
from omni_rl.consistency.records import SampleRecord
from omni_rl.kinds import KINDS
from omni_rl.media.renderer import Renderer
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.policies.probe import probe_answers, probe_prompts
from omni_rl.rollout.engine import RolloutEngine
from omni_rl.rollout.settings import Dtype, EngineSettings
from omni_rl.rollout.types import Rollout, SamplingSettings
from omni_rl.settings import Numerics
from omni_rl.tasks.samples import demo_prompts
from omni_rl_bench.agreement.parity import calls, parities
from omni_rl_bench.agreement.rate import rate
from omni_rl_bench.agreement.sides import Ours, Side, Transformers, logprobs

PROMPTS_PER_KIND = 4
TOKENS = 32
FIGURES = (
    "tokens",
    "logprob_abs_diff_mean",
    "logprob_abs_diff_p99",
    "logprob_abs_diff_max",
    "gen_kl_error",
    "token_mult_prob_error",
)
Logprobs = Sequence[NDArray[np.float64]]


def measure(checkpoint: str, dtype: Dtype, batch_invariant: bool = False) -> dict[str, Any]:
    """Return figures by kind of prompt of every side against the engine's prefill and its decode, parities, and speeds.

    A `batch_invariant` engine is for the side of that name alone.
    """
    path = Path(checkpoint)
    engine = RolloutEngine(EngineSettings(model=path, dtype=dtype, batch_invariant=batch_invariant))
    renderer = Renderer(engine.llm_engine)
    probe = list(probe_answers(renderer.render(probe_prompts())))
    prompts = [p for kind in KINDS for p in renderer.render(demo_prompts(kind, PROMPTS_PER_KIND, 0))]
    sampling = SamplingSettings(max_tokens=TOKENS, ignore_eos=True)
    sampled = _without_placeholders(path, engine.sample(prompts, sampling))
    decode = [answer.logprobs for answer in sampled]
    prefill, probe_prefill = ([score.logprobs for score in engine.score(given)] for given in (sampled, probe))
    made = [calls(engine, answer) for answer in probe]
    sampling_rate = rate(len(prompts) * TOKENS, lambda: engine.sample(prompts, sampling))
    engine.close()

    own: Sequence[Numerics] = ("batch_invariant",) if batch_invariant else ("matched", "reference")
    sides: dict[str, Side] = {numerics: Ours(path, getattr(torch, dtype), numerics) for numerics in own}
    if not batch_invariant:
        sides["transformers"] = Transformers(path, getattr(torch, dtype))
    return {
        "threads": torch.get_num_threads(),
        "engine": {
            "prefill_against_decode": _figures(sampled, decode, prefill),
            "sampling_tokens_per_second": sampling_rate,
        },
        "sides": {
            name: _compared(side, probe, probe_prefill, sampled, prefill, decode) | {"speed": _speed(side, sampled)}
            for name, side in sides.items()
        },
        "modules": {
            name: {module: asdict(parity) for module, parity in parities(side.model, made).items()}
            for name, side in sides.items()
            if isinstance(side, Ours)
        },
    }


def _without_placeholders(checkpoint: Path, answers: Iterable[Rollout]) -> list[Rollout]:
    """Return the answers without placeholders in them: transformers takes a sampled image placeholder for an image's
    place."""
    placeholder = NemotronOmniConfig.from_pretrained(checkpoint).img_context_token_id
    return [answer for answer in answers if placeholder not in answer.ids]


def _compared(
    side: Side,
    probe: Sequence[Rollout],
    probe_prefill: Logprobs,
    sampled: Sequence[Rollout],
    prefill: Logprobs,
    decode: Logprobs,
) -> dict[str, Any]:
    def against(answers: Sequence[Rollout], engine: Logprobs) -> dict[str, dict[str, float]]:
        chosen = [n for n, answer in enumerate(answers) if answer.prompt.kind in side.kinds]
        scored = [answers[n] for n in chosen]
        return _figures(scored, [engine[n] for n in chosen], logprobs(side, scored))

    return {
        "probe_against_prefill": against(probe, probe_prefill),
        "against_prefill": against(sampled, prefill),
        "against_decode": against(sampled, decode),
    }


def _figures(answers: Sequence[Rollout], engine: Logprobs, train: Logprobs) -> dict[str, dict[str, float]]:
    """Return the figures by kind of prompt, over all tokens: no flip of a router is left out."""
    records = [
        SampleRecord(answer.prompt.id, answer.prompt.kind, len(answer.prompt.ids), one, other)
        for answer, one, other in zip(answers, engine, train, strict=True)
    ]
    found = compare_step(StepColumns.of(records)).by_kind
    return {kind: {name: getattr(each.metrics, name) for name in FIGURES} for kind, each in found.items()}


def _speed(side: Side, answers: Sequence[Rollout]) -> Mapping[str, float]:
    """Return tokens a second, prompts included, of text and image answers, which every side can score."""
    chosen = [answer for answer in answers if answer.prompt.kind in ("text", "image")]
    tokens = sum(len(answer.prompt.ids) + len(answer.ids) for answer in chosen)

    def forward() -> None:
        with torch.no_grad():
            side.score(chosen)

    def both() -> None:
        side.score(chosen).sum().backward()  # type: ignore[no-untyped-call]
        side.clear()

    return {"tokens": tokens, "forward": rate(tokens, forward), "forward_and_backward": rate(tokens, both)}


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(measure(**json.loads(sys.argv[1]))) + "\n")
