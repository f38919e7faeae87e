"""Takes a training step of the released width in a few layers, on one device under FSDP2."""

from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh

from omni_rl.models.nemotron_omni.language.kernels import mamba_kernels
from omni_rl.models.nemotron_omni.parallel import shard
from omni_rl.train import rendezvous
from omni_rl.train.device import BACKENDS, own_device
from omni_rl.train.scoring import score_pack
from omni_rl.train.settings import PLAIN, TrainSettings
from omni_rl.train.step import build_optimizer, train_step
from omni_rl.train.targets import targets_of
from omni_rl_bench.gpu.answers import text_answers
from omni_rl_bench.gpu.card import matmul_rate
from omni_rl_bench.gpu.clock import seconds
from omni_rl_bench.gpu.wide import FEW_LAYERS, active_parameters, released

SEQUENCES, PROMPT, ANSWER = 4, 256, 1792
ADVANTAGES = (1.0, -1.0, 0.5, -0.5)
ROUNDS = 3
TIMEOUT = 60.0


def measure(_: Path) -> dict[str, Any]:
    """Measure one rank in bfloat16 with float32 masters and AdamW, as a trainer's; utilisation counts forward and
    backward."""
    settings = TrainSettings(world_size=1, dtype="bfloat16", device="cuda", max_pack_tokens=8192)
    device = own_device(settings.device)
    store, _port = rendezvous.listen(rendezvous.LOOPBACK, TIMEOUT)
    rendezvous.join(0, 1, BACKENDS[settings.device], rendezvous.LOOPBACK, store, TIMEOUT)
    model = released(torch.float32, device, FEW_LAYERS)
    active, parameters = active_parameters(model), sum(p.numel() for p in model.parameters())
    shard(model, init_device_mesh(settings.device, (1,)), torch.bfloat16)
    optimizer = build_optimizer(model, settings)
    given = text_answers(model.config, SEQUENCES, PROMPT, ANSWER)
    targets = [targets_of(given, ADVANTAGES)]
    chunk = settings.logprob_chunk

    def step() -> object:
        return train_step(model, optimizer, [given], targets, objective=PLAIN, settings=settings, device=device)

    took = seconds(step, ROUNDS)
    peak = torch.cuda.max_memory_allocated()
    scoring = seconds(lambda: score_pack(model, given, version="", logprob_chunk=chunk, device=device), ROUNDS)
    tokens = SEQUENCES * (PROMPT + ANSWER)
    rate = matmul_rate(device)
    return {
        "pattern": FEW_LAYERS,
        "parameters": parameters,
        "active_parameters": active,
        "tokens": tokens,
        "mamba": type(mamba_kernels(device, torch.bfloat16)).__name__,
        "step_seconds": round(took, 4),
        "step_tokens_per_second": round(tokens / took, 1),
        "step_utilisation": round(6 * active * tokens / took / rate, 4),
        "scoring_seconds": round(scoring, 4),
        "scoring_tokens_per_second": round(tokens / scoring, 1),
        "scoring_utilisation": round(2 * active * tokens / scoring / rate, 4),
        "optimizer_seconds": round(_optimizer_seconds(optimizer), 4),
        "peak_gib": round(peak / 2**30, 2),
    }


def _optimizer_seconds(optimizer: torch.optim.Optimizer) -> float:
    """Return the seconds of AdamW alone, which a step leaves no gradients to work on."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    took = seconds(optimizer.step, ROUNDS)
    optimizer.zero_grad(set_to_none=True)
    return took
