"""Scores with the whole released shape in bfloat16 on one device: how fast it is, and what it takes."""

from pathlib import Path
from typing import Any

import torch

from omni_rl.models.nemotron_omni.language.kernels import mamba_kernels
from omni_rl.train.device import own_device
from omni_rl.train.scoring import score_pack
from omni_rl_bench.gpu.answers import text_answers
from omni_rl_bench.gpu.card import matmul_rate
from omni_rl_bench.gpu.clock import seconds
from omni_rl_bench.gpu.wide import active_parameters, busiest, milliseconds_by_layer, released

SEQUENCES, PROMPT, ANSWER = 4, 256, 1792
CHUNK = 1024
ROUNDS = 3


def measure(_: Path) -> dict[str, Any]:
    """Return tokens a second of a pack, prompts included, through what a trainer's rank calls."""
    device = own_device("cuda")
    model = released(torch.bfloat16, device)
    given = text_answers(model.config, SEQUENCES, PROMPT, ANSWER)
    weights = torch.cuda.memory_allocated()

    def forward() -> object:
        return score_pack(model, given, version="", logprob_chunk=CHUNK, device=device)

    took = seconds(forward, ROUNDS)
    tokens = SEQUENCES * (PROMPT + ANSWER)
    active = active_parameters(model)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "active_parameters": active,
        "tokens": tokens,
        "mamba": type(mamba_kernels(device, torch.bfloat16)).__name__,
        "seconds": round(took, 4),
        "tokens_per_second": round(tokens / took, 1),
        "utilisation": round(2 * active * tokens / took / matmul_rate(device), 4),
        "weights_gib": round(weights / 2**30, 2),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "milliseconds_by_layer": milliseconds_by_layer(model, forward),
        **busiest(forward),
    }
