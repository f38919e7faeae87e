"""Makes models of the released width, with random weights on the device, and counts the arithmetic of a token."""

import json
from collections.abc import Callable
from typing import Any

import torch

from omni_rl.models.nemotron_omni import placement
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.nemotron_omni.initial import initialise
from omni_rl.models.nemotron_omni.language.block import Block
from omni_rl.models.nemotron_omni.language.moe import Experts
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl_bench.gpu.released_shape import RELEASED

FEW_LAYERS = "MEM*"
"""The pattern of few layers. It has one MoE layer: with all its experts that is 1.3 billion parameters, 16 bytes each
in training."""
KERNELS_SHOWN = 8
NAME = 90  # characters of a kernel's name


def released(
    dtype: torch.dtype, device: torch.device, pattern: str | None = None
) -> NemotronOmniForConditionalGeneration:
    """Return the released shape, with `pattern` in place of its layers; nothing of it is ever on the host."""
    shape = json.loads(json.dumps(RELEASED))
    if pattern is not None:
        shape["llm_config"] |= {"hybrid_override_pattern": pattern, "num_hidden_layers": len(pattern)}
    with torch.device("meta"):
        model = NemotronOmniForConditionalGeneration(NemotronOmniConfig(**shape))
    model.to(dtype)
    placement.materialise(model, device)
    torch.manual_seed(0)
    initialise(model)
    return model


def active_parameters(model: NemotronOmniForConditionalGeneration) -> int:
    """Return the number of the language model's parameters that a text token is multiplied with: no embeddings, K of
    the experts."""
    language = model.config.llm_config
    experts = sum(p.numel() for m in model.modules() if isinstance(m, Experts) for p in m.parameters())
    blocks = sum(p.numel() for m in model.modules() if isinstance(m, Block) for p in m.parameters())
    head = int(model.language_model.lm_head.weight.numel())
    chosen = experts * int(language.num_experts_per_tok) // int(language.n_routed_experts)
    return blocks - experts + chosen + head


def milliseconds_by_layer(model: NemotronOmniForConditionalGeneration, forward: Callable[[], object]) -> dict[str, Any]:
    """Return the milliseconds of one forward by the letter of the block (M Mamba2, * attention, E MoE) and the experts
    in E; "rest" is the embeddings, the head and the logprobs."""
    marks: dict[str, list[tuple[Any, Any]]] = {}
    handles = []
    for module in model.modules():
        kind = module.kind if isinstance(module, Block) else "experts" if isinstance(module, Experts) else None
        if kind is None:
            continue

        def before(_: Any, __: Any, kind: str = kind) -> None:
            marks.setdefault(kind, []).append((_mark(), None))

        def after(_: Any, __: Any, ___: Any, kind: str = kind) -> None:
            marks[kind][-1] = (marks[kind][-1][0], _mark())

        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    start = _mark()
    forward()
    end = _mark()
    torch.cuda.synchronize()
    for handle in handles:
        handle.remove()
    found = {kind: sum(float(one.elapsed_time(other)) for one, other in pairs) for kind, pairs in marks.items()}
    total = float(start.elapsed_time(end))
    rest = total - sum(spent for kind, spent in found.items() if kind != "experts")
    return {kind: round(spent, 2) for kind, spent in {**found, "rest": rest, "all": total}.items()}


def _mark() -> Any:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def busiest(work: Callable[[], object]) -> dict[str, Any]:
    """Return the kernels that take the device longest in one run, and the share of it in which the device works at
    all."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        start = _mark()
        work()
        end = _mark()
        torch.cuda.synchronize()
    rows = [row for row in profile.key_averages() if str(row.device_type).endswith("CUDA")]
    rows.sort(key=lambda row: -row.self_device_time_total)
    total = sum(row.self_device_time_total for row in rows) / 1e3
    return {
        "device_busy_share": round(total / float(start.elapsed_time(end)), 3),
        "kernel_calls": sum(row.count for row in rows),
        "kernels": [
            {"name": row.key[:NAME], "milliseconds": round(row.self_device_time_total / 1e3, 2), "calls": row.count}
            for row in rows[:KERNELS_SHOWN]
        ],
    }
