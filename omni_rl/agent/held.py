"""Reads what a vLLM model holds, part by part: fused modules are split, and what cannot be compared has a reason.

Letters: E experts of this worker, I intermediate width of this worker's shard, H hidden width.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    LinearBase,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
    UnquantizedLinearMethod,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

try:
    from vllm.model_executor.layers.fused_moe.oracle.unquantized import UnquantizedMoeBackend
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
except ImportError:  # vLLM 0.12, whose experts are reported as parts that no trainer has
    UnquantizedMoeBackend = RoutedExperts = UnquantizedFusedMoEMethod = None

from omni_rl.agent.loaders import BY_CLASS
from omni_rl.agent.names import SUBPART, Renames, canonical

WHOLE = "1/1"
"""The shard of what every worker holds alike."""
UNKNOWN = ""
"""The shard where the module does not say it; the comparison then goes by the sizes."""
AS_LOADED = "weights_as_loaded"
"""The name of an attribute that is true in a class of experts for the CPU that computes with the weights as they were
loaded; vLLM's own classes pack them."""
_PLAIN_EXPERTS = {"TRITON", "BATCHED_TRITON", "OOT"}
"""The backends whose kernels take the weights as they were loaded."""
_PACKED = "packed for the CPU's kernels: the engine computes with a copy that is laid out anew"


class ModelPart(NamedTuple):
    """A part of the model.

    `values` is a view of the engine's own memory, or None where `why` says that the part cannot be compared. `shard`
    says which of how many equal shares of the part this worker holds, as 2/4.
    """

    name: str
    tensor: str
    values: torch.Tensor | None
    shard: str = UNKNOWN
    why: str = ""


def parts(model: nn.Module) -> Iterator[ModelPart]:
    """Yield every parameter of a vLLM model, in parts; `tensor` is the name that the engine itself has for it."""
    names: set[str] = set()
    for part in _parts(model):
        # Names that only differ in what `canonical` takes away stay as the engine has them.
        own = part if part.name not in names else part._replace(name=part.tensor)
        names.add(own.name)
        yield own


def _parts(model: nn.Module) -> Iterator[ModelPart]:
    packed = _packed(model)
    seen: set[int] = set()
    for path, module in model.named_modules():
        for name, value in _own(module):
            if id(value) in seen:
                continue
            seen.add(id(value))
            tensor = f"{path}.{name}" if path else name
            if RoutedExperts is not None and isinstance(module, RoutedExperts):
                yield from _experts(module, path, name, value, tensor)
            elif why := _why_not(module, value):
                yield ModelPart(canonical(tensor), tensor, None, why=why)
            else:
                yield from _of_module(module, tensor, value, packed)


def _packed(model: nn.Module) -> dict[str, Sequence[str]]:
    """Return the members of the model's fused modules, by the modules' last names: as the model says itself, or one of
    the models inside it."""
    found: dict[str, Sequence[str]] = {}
    for module in model.modules():
        found = {**(getattr(module, "packed_modules_mapping", None) or {}), **found}
    return found


def _own(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a module's parameters, and the buffers that a checkpoint holds, such as running means; vLLM's own begin
    with _."""
    yield from module.named_parameters(recurse=False)
    for name, value in module.named_buffers(recurse=False):
        if name not in module._non_persistent_buffers_set and not name.startswith("_"):
            yield name, value


def renames(model: nn.Module) -> Renames:
    """Return how this model's loader renames what a checkpoint holds: by its own table, those of the models inside it,
    and what is known of its class.

    Patterns are left out: other processes than this one must apply these rules, and a pattern can take a program any
    time.
    """
    substrings: dict[str, str | None] = {}
    prefixes: dict[str, str | None] = {}
    suffixes: dict[str, str | None] = {}
    for kind in type(model).__mro__:
        known = BY_CLASS.get(kind.__name__, Renames())
        substrings |= known.substrings
        prefixes |= known.prefixes
    for path, module in model.named_modules():
        mapper = getattr(module, "hf_to_vllm_mapper", None)
        if mapper is None:
            continue
        at = f"{path}." if path else ""
        substrings |= {old: new for old, new in mapper.orig_to_new_substr.items() if old not in substrings}
        suffixes |= {old: new for old, new in mapper.orig_to_new_suffix.items() if old not in suffixes}
        prefixes |= {
            at + old: None if new is None else at + new
            for old, new in mapper.orig_to_new_prefix.items()
            if at + old not in prefixes
        }
    return Renames(substrings, prefixes, suffixes)


def _why_not(module: nn.Module, value: torch.Tensor) -> str:
    """Return why a parameter cannot be compared; empty if it can."""
    if value.is_meta:
        return "not in memory: it is offloaded, or asleep"
    method = getattr(module, "quant_method", None)
    if isinstance(module, LinearBase):
        if not isinstance(method, UnquantizedLinearMethod):
            return f"quantised ({type(method).__name__})"
        if value.numel() == 0:
            return _PACKED
    head = isinstance(module, ParallelLMHead)
    if head or isinstance(module, LinearBase):
        # A packed head keeps its weight, and does not use it.
        multiply = getattr(module, "cpu_linear", None)
        if multiply not in (None, nn.functional.linear):
            return _PACKED
    return ""


def _of_module(
    module: nn.Module, tensor: str, value: torch.Tensor, packed: Mapping[str, Sequence[str]]
) -> Iterator[ModelPart]:
    name = canonical(tensor)
    if isinstance(module, MergedColumnParallelLinear | QKVParallelLinear):
        yield from _fused(module, name, tensor, value, packed)
    elif isinstance(module, VocabParallelEmbedding):
        # Rows that fill the vocabulary up are nobody's weights.
        rows = module.shard_indices.num_org_elements
        yield ModelPart(name, tensor, value[:rows], WHOLE if module.tp_size == 1 else UNKNOWN)
    elif isinstance(module, ColumnParallelLinear) or (isinstance(module, RowParallelLinear) and value.ndim > 1):
        yield ModelPart(name, tensor, value, _of(module.tp_rank, module.tp_size))
    elif isinstance(module, LinearBase):
        yield ModelPart(name, tensor, value, WHOLE)
    else:
        yield ModelPart(name, tensor, value)


def _fused(
    module: Any, name: str, tensor: str, value: torch.Tensor, packed: Mapping[str, Sequence[str]]
) -> Iterator[ModelPart]:
    """Yield the rows of a fused module by their original names; pieces of one part where the model does not name
    them."""
    sizes = [size // module.tp_size for size in module.output_sizes]
    shards = [_of(module.tp_rank, module.tp_size)] * len(sizes)
    if isinstance(module, QKVParallelLinear) and module.num_kv_head_replicas > 1:
        few = module.num_kv_head_replicas
        shards[1:] = [_of(module.tp_rank // few, module.tp_size // few)] * 2
    *path, leaf, kind = name.split(".")
    names = packed.get(leaf, ())
    if len(names) != len(sizes) or sum(sizes) != len(value):
        if len(set(shards)) == 1 or sum(sizes) != len(value):
            yield ModelPart(name, tensor, value, shards[0])
            return
        names = ()
    for index, rows in enumerate(torch.split(value, sizes)):
        own = ".".join((*path, names[index], kind)) if names else f"{name}{SUBPART}{index}"
        yield ModelPart(own, tensor, rows, shards[index])


def _experts(module: Any, path: str, name: str, value: torch.Tensor, tensor: str) -> Iterator[ModelPart]:
    """Yield each expert's matrices: w13 [E, 2 I, H] is gate and up, or up alone; w2 [E, H, I] is down."""
    method = module.quant_method
    base = canonical(path)
    if why := _why_not_experts(method):
        yield ModelPart(f"{base}.{name}", tensor, None, why=why)
        return
    config = module.moe_config.moe_parallel_config
    manager = module.expert_map_manager
    numbers = manager.get_local_expert_ids() if config.use_ep else range(len(value))
    shard = WHOLE if config.use_ep else _of(config.tp_rank, config.tp_size)
    gated = module.moe_config.is_act_and_mul
    matrix, _, kind = name.partition("_")
    for number, weights in zip(numbers, value, strict=True):
        own = f"{base}.{number}"
        if matrix == "w2":
            # A bias of the down projection is added once, so every worker holds all of it.
            yield ModelPart(f"{own}.down_proj.{kind}", tensor, weights, WHOLE if weights.ndim == 1 else shard)
        elif matrix == "w13" and gated:
            gate, up = weights.chunk(2)
            yield ModelPart(f"{own}.gate_proj.{kind}", tensor, gate, shard)
            yield ModelPart(f"{own}.up_proj.{kind}", tensor, up, shard)
        else:
            yield ModelPart(f"{own}.up_proj.{kind}", tensor, weights, shard)


def _why_not_experts(method: Any) -> str:
    if not isinstance(method, UnquantizedFusedMoEMethod):
        return f"quantised ({type(method).__name__})"
    kernel = method.moe_kernel
    experts = None if kernel is None else kernel.fused_experts
    if method.unquantized_backend == UnquantizedMoeBackend.CPU:
        return "" if getattr(type(experts), AS_LOADED, False) else _PACKED
    if method.unquantized_backend.name in _PLAIN_EXPERTS:
        return ""
    return f"laid out anew for its kernel ({method.unquantized_backend.value})"


def _of(rank: int, size: int) -> str:
    return f"{rank + 1}/{size}"
