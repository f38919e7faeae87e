"""Updates that go wrong on their way into an engine, and what is to be said of each."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from tests.agent.rig import Send, Served
from tests.agent.tiny import Tensors


class Fault(NamedTuple):
    """`said`: in a sentence of the update. `keeps`: a cache that is not reset afterwards."""

    send: Send
    said: str
    cause: str
    keeps: str = ""


STALE, CORRUPT = "stale_weights", "corrupt_weights"


def whole(engine: Served, before: Tensors, after: Tensors) -> None:
    """A clean update."""
    engine.load(after)


def nothing(engine: Served, before: Tensors, after: Tensors) -> None:
    """The update never reaches the engine."""


def all_but(*patterns: str) -> Send:
    """An update without the tensors whose names have one of these in them."""

    def send(engine: Served, before: Tensors, after: Tensors) -> None:
        engine.load({name: value for name, value in after.items() if not any(one in name for one in patterns)})

    return send


def changed(pattern: str, how: Callable[[torch.Tensor], torch.Tensor]) -> Send:
    """An update with the tensors whose names have `pattern` in them changed on their way."""

    def send(engine: Served, before: Tensors, after: Tensors) -> None:
        engine.load({name: how(value) if pattern in name else value for name, value in after.items()})

    return send


def exchanged(one: str, other: str) -> Send:
    """An update in which the tensors whose names end so are sent under each other's name."""

    def send(engine: Served, before: Tensors, after: Tensors) -> None:
        pairs = [(name, name.removesuffix(one) + other) for name in after if name.endswith(one)]
        there = dict([*pairs, *((second, first) for first, second in pairs)])
        engine.load({name: after[there.get(name, name)] for name in after})

    return send


def half(engine: Served, before: Tensors, after: Tensors) -> None:
    """The first half of the tensors alone, by their names."""
    names = sorted(after)
    engine.load({name: after[name] for name in names[: len(names) // 2]})


def copied(engine: Served, before: Tensors, after: Tensors) -> None:
    """A right update, and then a copy in place into one of the engine's parameters."""
    engine.load(after)
    with torch.no_grad():
        (norm,) = (value for name, value in engine.model.named_parameters() if name.endswith("model.norm.weight"))
        norm.mul_(1.5)


def after_wake(engine: Served, before: Tensors, after: Tensors) -> None:
    """The engine wakes with the weights that it fell asleep with."""
    engine.load(after)
    engine.worker.sleep(1)
    engine.worker.wake_up()
    engine.load(before)


def nan(value: torch.Tensor) -> torch.Tensor:
    """The tensor with one element that is no number."""
    value = value.clone()
    value.view(-1)[3] = torch.nan
    return value


def first_two_swapped(value: torch.Tensor) -> torch.Tensor:
    """The tensor of all experts of a layer with the first two in each other's place."""
    return value[[1, 0, *range(2, len(value))]]


def rounded(value: torch.Tensor) -> torch.Tensor:
    """The values as bfloat16 has them."""
    return value.bfloat16().to(value.dtype)


Q, K = (f"layers.1.self_attn.{one}_proj.weight" for one in "qk")
ANY: Mapping[str, Fault] = {
    "no_update": Fault(nothing, "changed 0 of ", STALE),
    "one_layer": Fault(all_but("layers.1."), "parts of layer 1 are those of update ", STALE),
    "one_tensor": Fault(
        all_but("layers.0.self_attn.o_proj.weight"), "layers.0.self_attn.o_proj.weight is that of update ", STALE
    ),
    "half": Fault(half, " are those of update ", STALE),
    "q_and_k_swapped": Fault(
        exchanged(Q, K), "layers.1.self_attn.q_proj.weight and layers.1.self_attn.k_proj.weight are swapped", CORRUPT
    ),
    "zeroed": Fault(
        changed("layers.1.post_attention_layernorm", torch.zeros_like),
        "layers.1.post_attention_layernorm.weight is zero in the engine",
        CORRUPT,
    ),
    "nan": Fault(
        changed("layers.0.self_attn.v_proj.weight", nan),
        "layers.0.self_attn.v_proj.weight is not finite in 1 element",
        CORRUPT,
    ),
    "copied_in_place": Fault(copied, "norm.weight is neither the trainer's nor those of an update before", CORRUPT),
    "old_after_wake": Fault(after_wake, "the engine holds ", STALE),
    "prefix_cache": Fault(whole, "prefix cache not reset since update ", "stale_cache", keeps="prefix"),
}
"""For any decoder of attention and layer norms."""
EXPERTS: Mapping[str, Fault] = {
    "experts_of_one_layer": Fault(all_but("layers.1.mlp.experts"), "layer 1's experts are those of update ", STALE),
    "two_experts_swapped": Fault(
        changed("layers.1.mlp.experts", first_two_swapped), "layer 1's experts 0 and 1 are swapped", CORRUPT
    ),
}
ROUTER: Mapping[str, Fault] = {
    "router_rounded": Fault(
        changed("layers.0.mlp.gate.weight", rounded),
        "layers.0.mlp.gate.weight is the trainer's rounded to bfloat16",
        CORRUPT,
    ),
}
"""For an engine that holds its router in float32."""


ENCODER = Fault(whole, "encoder cache not reset since update ", "stale_cache", keeps="encoder")
TOWER: Mapping[str, Fault] = {
    "one_block": Fault(all_but("visual.blocks.0."), "parts of visual layer 0 are those of update ", STALE),
    "merger": Fault(
        changed("visual.merger.mlp.2.weight", torch.zeros_like), "visual.merger.mlp.2.weight is zero", CORRUPT
    ),
    "encoder_cache": ENCODER,
}
HYBRID: Mapping[str, Fault] = {
    "no_update": ANY["no_update"],
    "one_layer": Fault(all_but("backbone.layers.3."), "parts of layer 3 are those of update ", STALE),
    "decay": Fault(all_but("layers.3.mixer.A_log"), "layers.3.mixer.A is that of update ", STALE),
    "skip": Fault(all_but("layers.0.mixer.D"), "layers.0.mixer.D is that of update ", STALE),
    "decay_rounded": Fault(
        changed("layers.5.mixer.A_log", rounded), "layers.5.mixer.A is the trainer's rounded to bfloat16", CORRUPT
    ),
    "convolution": Fault(
        changed("layers.0.mixer.conv1d.weight", torch.zeros_like), "layers.0.mixer.conv1d.weight is zero", CORRUPT
    ),
    "skip_and_step_swapped": Fault(
        exchanged("layers.5.mixer.D", "layers.5.mixer.dt_bias"),
        "layers.5.mixer.dt_bias and layers.5.mixer.D are swapped",
        CORRUPT,
    ),
    "two_experts_swapped": Fault(
        exchanged("layers.2.mixer.experts.0.up_proj.weight", "layers.2.mixer.experts.5.up_proj.weight"),
        "layer 2's experts 0 and 5 are swapped",
        CORRUPT,
    ),
    "router_bias_rounded": Fault(
        changed("layers.6.mixer.gate.e_score_correction_bias", rounded),
        "layers.6.mixer.gate.e_score_correction_bias is the trainer's rounded to bfloat16",
        CORRUPT,
    ),
    "projector": Fault(all_but("mlp1.1.", "mlp1.3."), "mlp1.1.weight, mlp1.3.weight are those of update ", STALE),
    "vision_block": Fault(all_but("model.blocks.1."), "parts of vision_model.encoder layer 1 are those of ", STALE),
    "sound_projection": Fault(
        changed("sound_projection.linear1.weight", nan),
        "sound_encoder.projection.linear1.weight is not finite in 1 element",
        CORRUPT,
    ),
    "encoder_cache": ENCODER,
}
"""For Nemotron Omni, whose layers are Mamba's, attention's or experts'."""


UNSEEN: Mapping[str, Send] = {
    "rows_reordered": changed("o_proj.weight", lambda value: value.flip(0)),
}
"""What no sum of hashes can see, in any model: elements that change places within one part. It counts as equal."""
MERGED: Mapping[str, Fault] = {
    "one_layer": Fault(all_but("layers.1."), "layer 1's ", STALE),
    # Adapters begin as zeros: the base alone is what the first update was.
    "adapter_left_out": Fault(
        lambda engine, before, after: engine.load(engine.first), "6 parts of layers 0, 1 are those of update 1", STALE
    ),
    "one_tensor": ANY["one_tensor"],
    "no_update": ANY["no_update"],
}
"""For a dense model whose adapters are merged into q, o and down on their way."""
IN_TRL: Mapping[str, Mapping[str, Fault]] = {
    # What is not finite comes last: the trainer learns from such answers, and is lost.
    "full": {**{name: fault for name, fault in ANY.items() if name != "nan"}, "nan": ANY["nan"]},
    "experts": {**EXPERTS, **ROUTER},
    "lora": MERGED,
}
"""By kind of a TRL run."""


def of(kind: str, dtype: str) -> Mapping[str, Fault]:
    """The faults that a kind of model is tried with, in an engine of a dtype."""
    experts = {**ANY, **EXPERTS, **(ROUTER if dtype == "float32" else {})}
    return {"qwen2": ANY, "qwen3_moe": experts, "qwen2_vl": {**ANY, **TOWER}, "omni": HYBRID}[kind]
