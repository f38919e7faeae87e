"""What a trainer holds against what an engine's workers hold, with the names and layouts that both really have."""

import pytest
import torch

from omni_rl.agent import faults
from omni_rl.agent.bodies import Sums
from omni_rl.agent.comparison import WeightComparison, compare
from omni_rl.agent.faults import UpdateReport
from omni_rl.agent.fingerprint import Fingerprint
from omni_rl.agent.loaders import BY_CLASS
from omni_rl.agent.names import Renames, canonical, expert_of, layer_of
from omni_rl.agent.tensors import fingerprint
from omni_rl.agent.trainer import of_tensors
from omni_rl.agent.workers import Held, WorkerParts
from omni_rl.consistency.actions import Cause

H, WIDTH, E = 16, 12, 4
Weights = dict[str, torch.Tensor]


def trained(seed: int, dtype: torch.dtype = torch.bfloat16) -> Weights:
    """A layer of attention and one of experts, and an embedding."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "model.embed_tokens.weight": (20, H),
        "model.layers.0.self_attn.q_proj.weight": (H, H),
        "model.layers.0.self_attn.k_proj.weight": (H, H),
        "model.layers.0.self_attn.v_proj.weight": (8, H),
        "model.layers.0.self_attn.o_proj.weight": (H, H),
        "model.layers.0.input_layernorm.weight": (H,),
        "model.layers.1.mlp.gate.e_score_correction_bias": (E,),
        "model.layers.1.mlp.experts.gate_up_proj": (E, 2 * WIDTH, H),
        "model.layers.1.mlp.experts.down_proj": (E, H, WIDTH),
    }
    weights = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    weights["model.layers.1.mlp.gate.e_score_correction_bias"] = torch.randn(E, generator=generator)
    return weights


def worker(weights: Weights, number: int = 0, of: int = 1, changed: bool = True) -> WorkerParts:
    """A vLLM worker that holds its shard of these weights: columns of q, k, v, gate and up, rows of o and down."""
    parts: dict[str, Held] = {}
    shard = f"{number + 1}/{of}"

    def put(name: str, value: torch.Tensor, shard: str) -> None:
        parts[name] = Held(fingerprint(value), shard)

    for name, value in weights.items():
        own = canonical(name)
        if "experts" in name:
            for expert, one in enumerate(value):
                base = f"layers.1.mlp.experts.{expert}"
                if "gate_up" in name:
                    gate, up = one.chunk(2)
                    put(f"{base}.gate_proj.weight", gate.chunk(of)[number], shard)
                    put(f"{base}.up_proj.weight", up.chunk(of)[number], shard)
                else:
                    put(f"{base}.down_proj.weight", one.chunk(of, 1)[number], shard)
        elif value.ndim == 1:
            put(own, value, "")
        elif "o_proj" in name:
            put(own, value.chunk(of, 1)[number], shard)
        else:
            put(own, value.chunk(of)[number], shard)
    return WorkerParts(number, parts, {}, frozenset(parts) if changed else frozenset())


def told(found: WeightComparison, changed: int = 9, workers: int = 1) -> list[str]:
    return [one.sentence for one in faults.weights(UpdateReport(12, 9, changed, workers), found)]


def announced(weights: Weights, dtype: torch.dtype = torch.bfloat16) -> Sums:
    return of_tensors(weights.items(), dtype=dtype)


def test_names_lose_what_frameworks_wrap_around_them() -> None:
    plain = "layers.7.self_attn.q_proj.weight"
    for name in (
        "model.layers.7.self_attn.q_proj.weight",
        "module.model.layers.7._checkpoint_wrapped_module.self_attn.q_proj.weight",
        "_fsdp_wrapped_module.model.layers.7._fsdp_wrapped_module.self_attn.q_proj.weight",
        "base_model.model.model.layers.7.self_attn.q_proj.base_layer.weight",
        "language_model.model.layers.7.self_attn.q_proj.weight",
        "model.language_model.layers.7.self_attn.q_proj.weight",
        "language_model.backbone.layers.7.self_attn.q_proj.weight",
    ):
        assert canonical(name) == plain
    assert canonical("model.layers.1.block_sparse_moe.experts.3.w2.weight").endswith("experts.3.down_proj.weight")
    assert layer_of(plain) == 7
    assert layer_of("embed_tokens.weight") is None
    assert expert_of("layers.1.mlp.experts.3.up_proj.weight") == 3


def test_an_engine_in_one_and_in_two_workers_is_the_trainer() -> None:
    weights = trained(0)
    parts = 7 + 3 * E
    for workers in ([worker(weights)], [worker(weights, 0, 2), worker(weights, 1, 2)]):
        found = compare(announced(weights), workers, Renames())
        assert (len(found.equal), found.different, found.opaque) == (parts, [], {})


def test_a_float32_trainer_is_compared_in_the_engines_dtype() -> None:
    weights = trained(0, torch.float32)
    served = {name: value if "bias" in name else value.bfloat16() for name, value in weights.items()}
    found = compare(announced(weights), [worker(served)], Renames())
    assert found.different == []
    assert found.opaque == {}
    alone = compare(of_tensors(weights.items()), [worker(served)], Renames())
    assert alone.opaque["embed_tokens.weight"] == "the engine holds bfloat16, the trainer announced float32"


def test_fused_parts_on_either_side_are_added_up() -> None:
    weights = trained(0)
    attention = [weights[f"model.layers.0.self_attn.{one}_proj.weight"] for one in "qkv"]
    fused = {"model.layers.0.self_attn.qkv_proj.weight": torch.cat(attention)}
    apart = {f"model.layers.0.self_attn.{one}_proj.weight": value for one, value in zip("qkv", attention, strict=True)}
    for ours, theirs in ((fused, apart), (apart, fused)):
        found = compare(announced(ours), [worker(theirs)], Renames())
        assert (found.equal, found.different, found.opaque) == ({"layers.0.self_attn.qkv_proj.weight"}, [], {})
        theirs = {name: value.clone() for name, value in theirs.items()}
        next(iter(theirs.values()))[0, 0] += 1
        found = compare(announced(ours), [worker(theirs)], Renames())
        assert [one.name for one in found.different] == ["layers.0.self_attn.qkv_proj.weight"]
    # A fused module of an engine whose parts the trainer did not all tell of.
    del apart["model.layers.0.self_attn.v_proj.weight"]
    found = compare(announced(apart), [worker(fused)], Renames())
    assert (found.equal, found.different) == (set(), [])
    assert list(found.opaque.values()) == ["the trainer announced only some of the parts that are fused in it"]


def test_pieces_of_a_fused_part_are_added_up_and_replicas_counted_once() -> None:
    """Two workers share q out, and hold the same key and value heads."""
    q, kv = torch.randn(8, H), torch.randn(4, H)
    name = "visual.blocks.0.attn.qkv.weight"
    workers = []
    for number in range(2):
        pieces = {
            f"{name}#0": Held(fingerprint(q.chunk(2)[number]), f"{number + 1}/2"),
            f"{name}#1": Held(fingerprint(kv), "1/1"),
            f"{name}#2": Held(fingerprint(kv * 2), "1/1"),
        }
        workers.append(WorkerParts(number, pieces, {}, None))
    found = compare(of_tensors([(name, torch.cat([q, kv, kv * 2]))]), workers, Renames())
    assert found.equal == {name}


def test_an_engines_own_renames_are_followed() -> None:
    renames = Renames({"A_log": "A", "embeddings": "embed_tokens"}, {"backbone": "model", "mtp": None})
    ours = {"backbone.layers.0.mixer.A_log": torch.rand(4), "backbone.embeddings.weight": torch.rand(4, 4)}
    held = {
        "layers.0.mixer.A": Held(fingerprint(-torch.exp(ours["backbone.layers.0.mixer.A_log"]))),
        "embed_tokens.weight": Held(fingerprint(ours["backbone.embeddings.weight"])),
    }
    found = compare(announced({**ours, "mtp.norm.weight": torch.rand(4)}), [WorkerParts(0, held, {}, None)], renames)
    assert found.equal == set(held)
    assert found.opaque == {"mtp.norm.weight": "the engine has no part of that name"}


def test_what_a_loader_renames_in_code_is_followed() -> None:
    """Names of Nemotron Omni's checkpoint, and where vLLM has them."""
    known = BY_CLASS["NemotronH_Nano_VL_V2"]
    renames = Renames({**known.substrings, "embeddings": "embed_tokens"}, known.prefixes)
    for released, engine in {
        "vision_model.radio_model.model.blocks.1.attn.qkv.bias": "vision_model.model.encoder.layers.1.attn.qkv.bias",
        "vision_model.radio_model.model.patch_generator.pos_embed": "vision_model.model.patch_generator.pos_embed",
        "sound_projection.linear1.weight": "sound_encoder.projection.linear1.weight",
        "sound_encoder.encoder.layers.0.norm_out.bias": "sound_encoder.encoder.layers.0.norm_out.bias",
        "language_model.backbone.embeddings.weight": "language_model.model.embed_tokens.weight",
        "language_model.lm_head.weight": "language_model.lm_head.weight",
    }.items():
        assert canonical(engine) in renames.candidates(released)


def test_tied_heads_are_said_to_be_tied() -> None:
    weights = trained(0)
    ours = {**weights, "lm_head.weight": weights["model.embed_tokens.weight"]}
    found = compare(announced(ours), [worker(weights)], Renames())
    assert found.opaque == {"lm_head.weight": "tied to embed_tokens.weight"}


def test_packed_and_quantised_parts_are_never_equal() -> None:
    weights = trained(0)
    whole = worker(weights)
    parts = {name: held for name, held in whole.parts.items() if "experts" not in name and "_proj" not in name}
    opaque = {"layers.0.self_attn.qkv_proj.weight": "packed", "layers.1.mlp.experts.w13_weight": "packed too"}
    found = compare(announced(weights), [WorkerParts(0, parts, opaque, None)], Renames())
    assert found.different == []
    assert set(found.equal) == set(parts)
    assert found.opaque["layers.0.self_attn.q_proj.weight"] == "packed"
    assert found.opaque["layers.1.mlp.experts.3.down_proj.weight"] == "packed too"
    assert found.opaque["model.layers.0.self_attn.o_proj.weight"] == "the engine has no part of that name"


def test_an_update_that_never_arrives_changes_nothing() -> None:
    old, new = trained(0), trained(1)
    found = compare(announced(new), [worker(old, changed=False)], Renames(), {11: announced(old)})
    assert told(found, changed=0) == ["update 12 changed 0 of 9 tensors: the engine holds update 11"]


def test_what_was_zero_and_was_not_written_is_stale_and_not_zeroed() -> None:
    """A bias begins as zeros; an update that does not arrive leaves it so."""
    before, now = trained(0), trained(1)
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    before[bias] = torch.zeros(E)
    earlier = {11: of_tensors(before.items())}
    kept = compare(of_tensors(now.items()), [worker(before, changed=False)], Renames(), earlier)
    assert told(kept, changed=0) == ["update 12 changed 0 of 9 tensors: the engine holds update 11"]
    zeroed = compare(of_tensors(now.items()), [worker({**now, bias: torch.zeros(E)})], Renames(), earlier)
    assert ["zero in the engine" in sentence for sentence in told(zeroed)] == [True]


def test_stale_layers_and_experts_are_named_with_the_update_that_they_are_of() -> None:
    old, new = trained(0), trained(1)
    earlier = {10: announced(trained(5)), 11: announced(old)}
    mixed = {name: (old if "experts" in name else new)[name] for name in new}
    found = compare(announced(new), [worker(mixed)], Renames(), earlier)
    assert told(found) == ["update 12: layer 1's experts are those of update 11"]
    mixed = {name: (old if "o_proj" in name else new)[name] for name in new}
    found = compare(announced(new), [worker(mixed)], Renames(), earlier)
    assert told(found) == ["update 12: layers.0.self_attn.o_proj.weight is that of update 11"]


def test_swaps_zeros_nan_and_rounding_are_told_apart() -> None:
    new = trained(1)
    q, k = ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight")
    broken = {**new, q: new[k], k: new[q]}
    found = compare(announced(new), [worker(broken)], Renames())
    assert told(found) == [
        "update 12: layers.0.self_attn.q_proj.weight and layers.0.self_attn.k_proj.weight are swapped"
    ]
    broken = {name: value[[1, 0, 2, 3]] if "experts" in name else value for name, value in new.items()}
    found = compare(announced(new), [worker(broken)], Renames())
    assert told(found) == ["update 12: layer 1's experts 0 and 1 are swapped"]
    broken = {**new, q: torch.zeros_like(new[q])}
    found = compare(announced(new), [worker(broken)], Renames())
    assert told(found) == ["update 12: layers.0.self_attn.q_proj.weight is zero in the engine and not in the trainer"]
    broken = {
        **new,
        q: new[q].clone().index_put_((torch.tensor(0), torch.tensor(0)), torch.tensor(float("nan")).bfloat16()),
    }
    found = compare(announced(new), [worker(broken)], Renames())
    assert told(found) == ["update 12: layers.0.self_attn.q_proj.weight is not finite in 1 element in the engine"]
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    broken = {**new, bias: new[bias].bfloat16().float()}
    found = compare(announced(new), [worker(broken)], Renames())
    assert told(found) == ["update 12: layers.1.mlp.gate.e_score_correction_bias is the trainer's rounded to bfloat16"]
    assert [one.cause for one in faults.weights(UpdateReport(12, 9, 9, 1), found)] == ["corrupt_weights"]


@pytest.mark.parametrize("stale", [0, 1])
@pytest.mark.parametrize("first", [0, 1])
def test_one_of_two_workers_that_kept_its_weights_is_named(stale: int, first: int) -> None:
    old, new = trained(0), trained(1)
    workers = [worker(new, 1 - stale, 2), worker(old, stale, 2, changed=False)]
    told_of = sorted(workers, key=lambda one: one.number != first)
    # Without the trainer's update among those that are known, the one that took it is still the one to believe.
    for ours in (new, trained(2)):
        found = compare(announced(ours), told_of, Renames(), {11: announced(old)})
        (sentence,) = told(found, workers=2)
        assert sentence.startswith(f"update 12: worker {stale} of 2 has not taken ")
        assert len(found.different) == 7 + 3 * E


@pytest.mark.parametrize("broken", [0, 1])
def test_one_of_two_workers_that_took_something_else_is_named(broken: int) -> None:
    new = trained(1)
    norm = "model.layers.0.input_layernorm.weight"
    workers = [worker(new, 1 - broken, 2), worker({**new, norm: new[norm] * 2}, broken, 2)]
    found = compare(announced(new), workers, Renames(), {11: announced(trained(0))})
    (finding,) = faults.weights(UpdateReport(12, 9, 9, 2), found)
    name = "layers.0.input_layernorm.weight"
    assert finding.sentence == f"update 12: {name} is not the same in worker {broken} of 2 as in the others"
    assert finding.cause == Cause.CORRUPT_WEIGHTS


def test_elements_that_change_places_within_one_part_are_not_seen() -> None:
    """What the fingerprints cannot tell, on purpose: shards and fused layouts move elements too."""
    new = trained(1)
    name = "model.layers.0.self_attn.o_proj.weight"
    found = compare(announced(new), [worker({**new, name: new[name].flip(0)})], Renames())
    assert (len(found.equal), found.different, found.opaque) == (7 + 3 * E, [], {})


def test_caches_that_outlived_the_update_are_named() -> None:
    for reset, since in ((3, "update 3"), (faults.START, "the engine started"), (None, "an earlier update")):
        of = UpdateReport(12, 9, 9, 1, stale_caches={"prefix": reset, "encoder": reset})
        assert [one.sentence.split(":")[0] for one in faults.caches(of)] == [
            f"prefix cache not reset since {since}",
            f"encoder cache not reset since {since}",
        ]


def test_sums_of_an_update_are_small() -> None:
    assert all(isinstance(one, Fingerprint) for each in announced(trained(0)).values() for one in each)
