"""A model with more experts than a body takes: its experts are told of layer by layer, and compared so."""

import random
from dataclasses import replace

import pytest

from omni_rl.agent import faults, summed
from omni_rl.agent.bodies import Sums, announcement, held_parts
from omni_rl.agent.comparison import WeightComparison, compare
from omni_rl.agent.faults import UpdateReport
from omni_rl.agent.fingerprint import MODULUS, Fingerprint
from omni_rl.agent.names import Renames
from omni_rl.agent.workers import Held, WorkerParts
from omni_rl.api.updates import MAX_PARTS

LAYERS, EXPERTS = 61, 384
KINDS = ("gate_proj", "up_proj", "down_proj")
assert LAYERS * EXPERTS * len(KINDS) > MAX_PARTS


def trained(seed: int) -> dict[str, Fingerprint]:
    """Every part of such a model, of 64 elements each."""
    chance = random.Random(seed)
    names = [f"layers.{layer}.input_layernorm.weight" for layer in range(LAYERS)]
    names += [
        f"layers.{layer}.mlp.experts.{expert}.{kind}.weight"
        for layer in range(LAYERS)
        for expert in range(EXPERTS)
        for kind in KINDS
    ]
    return {name: Fingerprint("bfloat16", 64, chance.randrange(MODULUS), 1.0) for name in names}


def sums(parts: dict[str, Fingerprint]) -> Sums:
    return {f"model.{name}": (one,) for name, one in parts.items()}


def sent(worker: WorkerParts) -> WorkerParts:
    """What the coordinator makes of a worker's body."""
    parts = held_parts(worker)
    assert len(parts) <= MAX_PARTS
    return worker._replace(
        parts={
            name: Held(
                Fingerprint(one.sum.dtype, one.sum.elements, int(one.sum.hashes, 16), one.sum.squares), one.shard
            )
            for name, one in parts.items()
        },
        changed=frozenset(name for name, one in parts.items() if one.changed),
    )


def engine(parts: dict[str, Fingerprint], workers: int = 1) -> list[WorkerParts]:
    """Its workers, which share the experts out, each whole."""
    own = [
        {name: Held(one, "1/1") for name, one in parts.items() if _at(name, workers) in (None, number)}
        for number in range(workers)
    ]
    return [sent(WorkerParts(number, each, {}, frozenset(each))) for number, each in enumerate(own)]


def _at(name: str, workers: int) -> int | None:
    return int(name.split(".")[4]) % workers if ".experts." in name else None


def told(found: WeightComparison) -> list[str]:
    return [one.sentence for one in faults.weights(UpdateReport(12, 9, 9, 1), found)]


@pytest.fixture(scope="module")
def newest() -> dict[str, Fingerprint]:
    return trained(1)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_every_layers_experts_are_compared(newest: dict[str, Fingerprint], workers: int) -> None:
    """Two workers have few enough parts each to tell of them one by one; the trainer has not."""
    body = announcement(sums(newest), at=0.0)
    assert len(body.parts) == LAYERS * (1 + len(KINDS))
    found = compare(summed.announced(sums(newest)), engine(newest, workers), Renames())
    assert (len(found.equal), found.different, found.opaque) == (LAYERS * (1 + len(KINDS)), [], {})


def test_what_is_wrong_is_named_as_a_layers_experts(newest: dict[str, Fingerprint]) -> None:
    older = trained(0)
    stale = {name: older[name] if name.startswith("layers.7.mlp") else one for name, one in newest.items()}
    found = compare(sums(newest), engine(stale), Renames(), {11: sums(older)})
    assert told(found) == ["update 12: layer 7's experts are those of update 11"]
    one = "layers.3.mlp.experts.40.up_proj.weight"
    broken = {**newest, one: replace(newest[one], hashes=newest[one].hashes ^ 1)}
    found = compare(sums(newest), engine(broken), Renames())
    assert told(found) == [
        "update 12: layers.3.mlp.experts.*.up_proj.weight is neither the trainer's nor those of an update before"
    ]


def test_two_experts_in_each_others_place_are_seen(newest: dict[str, Fingerprint]) -> None:
    names = [[f"layers.5.mlp.experts.{expert}.{kind}.weight" for kind in KINDS] for expert in (8, 9)]
    swapped = {
        **newest,
        **{a: newest[b] for a, b in zip(*names, strict=True)},
        **{b: newest[a] for a, b in zip(*names, strict=True)},
    }
    found = compare(sums(newest), engine(swapped), Renames())
    assert told(found) == ["update 12: layer 5's experts are neither the trainer's nor those of an update before"]
