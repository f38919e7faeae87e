"""Compares the small checkpoint's gradients on the device with the host's, parameter by parameter."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.rollout.types import Rollout
from omni_rl.train.device import own_device
from omni_rl.train.packing import pack, temperatures
from omni_rl_bench.gpu.agreement import CHUNK, CPU, Dtype, load
from omni_rl_bench.gpu.answers import answers

WORST = 8
Gradients = Mapping[str, torch.Tensor]


def measure(checkpoint: Path, dtype: Dtype) -> dict[str, Any]:
    """Compare gradients of the mean logprob of all answers; the host in float64 says how far each device is from
    exact."""
    given = answers(checkpoint)
    device = own_device("cuda")
    exact = gradients(load(checkpoint, torch.float32, CPU).double(), given, CPU)
    host, there, again = (
        gradients(load(checkpoint, getattr(torch, dtype), where), given, where) for where in (CPU, device, device)
    )
    return {
        "parameters": len(host),
        "device_against_host": errors(host, there)[:WORST],
        "host_against_float64": errors(exact, host)[:WORST],
        "device_against_float64": errors(exact, there)[:WORST],
        "repeats_bit_for_bit": all(torch.equal(there[name], again[name]) for name in there),
    }


def gradients(
    model: NemotronOmniForConditionalGeneration, given: Sequence[Rollout], device: torch.device
) -> dict[str, torch.Tensor]:
    """Return the gradients of all answers in one pack, float64 on the host, by the parameter's name."""
    scored = model.score_packed(
        pack(given).to(device),
        temperature=temperatures(given).to(device),
        logprob_chunk=CHUNK,
        record_routing=False,
    )
    torch.autograd.backward(scored.logprobs.mean())
    return {name: p.grad.double().cpu() for name, p in model.named_parameters() if p.grad is not None}


def errors(expected: Gradients, found: Gradients) -> list[dict[str, Any]]:
    """Return ‖difference‖ / ‖expected‖ of each parameter with a gradient, the largest first."""
    rows = [
        {"parameter": name, "error": float((found[name] - gradient).norm() / norm), "norm": float(norm)}
        for name, gradient in expected.items()
        if (norm := gradient.norm()) > 0
    ]
    return sorted(rows, key=lambda row: -float(row["error"]))
