"""The names of parts that a trainer and an engine share, however the modules were wrapped, prefixed or fused.

A part is one logical matrix or vector: `layers.7.self_attn.q_proj.weight`, `layers.7.mlp.experts.3.up_proj.weight`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

SUBPART = "#"
"""The sign before a piece's number where an engine holds a part in pieces, as `NAME#0` and `NAME#1`; the fingerprints
of the pieces add up to that of the part."""
_WRAPPERS = frozenset(
    {"_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_orig_mod", "base_layer", "base_model", "module"}
)
_TRUNKS = frozenset({"backbone", "language_model", "model", "routed_experts", "runner"})
"""Modules that only hold others: frameworks disagree on where they stand."""
_EXPERT_NAMES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
"""The names of an expert's matrices in Mixtral and in models that took them over, with the usual names."""
_LAYER = re.compile(r"(?:^|\.)(?:layers|blocks|h|block)\.(\d+)\.")
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
ALL_EXPERTS = ".experts.*."
"""What stands in the name of a sum over all experts of a layer."""
FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""Modules that one side may hold fused, by the fused name, and the other as the several modules listed."""


def canonical(name: str) -> str:
    """Return the name without wrappers and trunks, and with the usual names for experts' matrices:
    `model.layers.0.mlp.experts.3.w1.weight` becomes `layers.0.mlp.experts.3.gate_proj.weight`."""
    segments = [segment for segment in name.split(".") if segment not in _WRAPPERS and segment not in _TRUNKS]
    if "experts" in segments:
        segments = [_EXPERT_NAMES.get(segment, segment) for segment in segments]
    return ".".join(segments)


def layer_of(name: str) -> int | None:
    """Return the number of the layer that a part belongs to; None outside of layers."""
    found = _LAYER.search(f".{name}")
    return None if found is None else int(found[1])


def expert_of(name: str) -> int | None:
    """Return the number of the expert that a part belongs to; None outside of experts."""
    found = _EXPERT.search(name)
    return None if found is None else int(found[1])


def of_all_experts(name: str) -> str | None:
    """Return the name of the sum over all experts of a layer that a part of one expert is added to; None for a part
    that is no expert's."""
    found = _EXPERT.search(name)
    return None if found is None else f"{name[: found.start()]}{ALL_EXPERTS}{name[found.end() :]}"


def tower_of(name: str) -> str:
    """Return what a canonical name has before its layer: for example `visual` for a vision tower, and an empty text for
    the language model and for parts outside of layers."""
    found = _LAYER.search(name)
    return "" if found is None else name[: found.start()].strip(".")


@dataclass(frozen=True)
class Renames:
    """How an engine renames what a checkpoint holds; None: the engine drops it. Each mapping is tried in order, as vLLM
    does: substrings, then prefixes, then suffixes."""

    substrings: Mapping[str, str | None] = field(default_factory=dict)
    prefixes: Mapping[str, str | None] = field(default_factory=dict)
    suffixes: Mapping[str, str | None] = field(default_factory=dict)

    def apply(self, name: str) -> str | None:
        """Return the engine's name of the checkpoint's tensor `name`; None if the engine drops the tensor."""
        for old, new in self.substrings.items():
            if old in name:
                if new is None:
                    return None
                name = name.replace(old, new, 1)
        for old, new in self.prefixes.items():
            if name.startswith(old):
                if new is None:
                    return None
                name = new + name[len(old) :]
        for old, new in self.suffixes.items():
            if name.endswith(old):
                if new is None:
                    return None
                name = name[: -len(old)] + new
        return name

    def candidates(self, name: str) -> Iterator[str]:
        """Yield canonical names under which the engine may hold a trainer's tensor, the likeliest first."""
        plain = canonical(name)
        yield plain
        # A trainer may name its tensors with or without the outermost module that the checkpoint has.
        for given in (name, f"model.{name}"):
            renamed = self.apply(given)
            if renamed is not None and (found := canonical(renamed)) != plain:
                yield found


def members(name: str) -> list[str]:
    """Return the names of the parts that the name of a fused part stands for; an empty list if it is not fused."""
    segments = name.split(".")
    for index, segment in enumerate(segments):
        if segment in FUSED:
            return [".".join((*segments[:index], one, *segments[index + 1 :])) for one in FUSED[segment]]
    return []


def whole(names: Iterable[str]) -> dict[str, list[str]]:
    """Group names by part: the key is the part's name, the value lists that name or those of the part's pieces."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.split(SUBPART)[0], []).append(name)
    return found
