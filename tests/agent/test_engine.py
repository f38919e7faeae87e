"""The agent in a real vLLM on the CPU: clean updates ring nothing, and each fault is told of at its update."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.faults import UNSEEN, of
from tests.agent.process import told, vllm_nursery

pytestmark = pytest.mark.slow
CLEAN = "3"
MODELS = [
    ("qwen2", "float32"),
    ("qwen2", "bfloat16"),
    ("qwen3_moe", "float32"),
    ("qwen3_moe", "bfloat16"),
    ("qwen2_vl", "float32"),
    ("omni", "bfloat16"),
]
"""Kinds, and the dtype of the engine; the trainer's is float32."""


@pytest.fixture(scope="module")
def nursery() -> Iterator[str]:
    with vllm_nursery() as address:
        yield address


@pytest.mark.parametrize(("kind", "dtype"), MODELS)
def test_every_fault_is_told_of_at_its_update(nursery: str, tmp_path: Path, kind: str, dtype: str) -> None:
    found = told(nursery, tmp_path, "tests.agent.rig", kind, dtype, CLEAN)
    faults = of(kind, dtype)
    assert faults.keys() | UNSEEN.keys() == {name for name in found if not name.startswith(("clean", "after"))}
    for name, answer in found.items():
        sentences = [one["sentence"] for one in answer["findings"]]
        if name not in faults:
            assert (name, sentences, answer["different"]) == (name, [], 0)
            assert answer["equal"] > 10
            assert answer["not_comparable"] == 0
            continue
        assert any(faults[name].said in sentence for sentence in sentences), (name, sentences)
        assert answer["findings"][0]["cause"] == faults[name].cause, (name, sentences)
    assert all(found[name]["equal"] == found["clean 0"]["equal"] for name in UNSEEN)


def test_packed_weights_are_never_called_equal(nursery: str, tmp_path: Path) -> None:
    found = told(nursery, tmp_path, "tests.agent.rig", "qwen2", "float32", CLEAN, PLAIN="0")
    packed = found["packed"]
    assert (packed["findings"], packed["different"]) == ([], 0)
    assert packed["not_comparable"] > packed["equal"]
    assert "packed for the CPU's kernels" in next(iter(packed["reasons"]))


def test_adapters_that_are_absent_older_or_scaled_otherwise_are_named(nursery: str, tmp_path: Path) -> None:
    found = told(nursery, tmp_path, "tests.agent.adapters_rig")
    sentences = {
        name: [one["sentence"].split(": ", 1)[1] for one in answer["findings"]] for name, answer in found.items()
    }
    for name in ("clean", "another", "added", "again"):
        assert (name, sentences[name]) == (name, [])
        assert found[name]["adapters"] == ["policy"]
    assert sentences["older"] == ["adapter `policy` is that of update 2"]
    assert sentences["not_loaded"] == ["adapter `policy` is not loaded"]
    assert sentences["other_name"] == ["adapter `policy` is loaded under the name `reference`"]
    assert sentences["scale_0"][0].startswith("adapter `policy` has a scale of 0")
    assert sentences["other_scale"][0].startswith("adapter `policy` has another scale")


def test_one_of_two_workers_that_keeps_its_weights_is_named(nursery: str, tmp_path: Path) -> None:
    variables = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn", "OMP_NUM_THREADS": "1"}
    found = told(nursery, tmp_path, "tests.agent.workers_rig", **variables)
    for name in ("clean", "again"):
        assert (name, found[name]["findings"], found[name]["different"]) == (name, [], 0)
        assert (found[name]["equal"] > 20, found[name]["not_comparable"]) == (True, 0)
    assert found["stale"]["findings"][0]["sentence"].startswith("update 2: worker 1 of 2 has not taken ")


def test_updates_are_seen_by_whatever_way_they_come(nursery: str, tmp_path: Path) -> None:
    found = told(nursery, tmp_path, "tests.agent.entrances_rig", OMNI_RL_AGENT_EVERY="4")
    ways = {
        "extension": "take_weights",
        "transfer": "finish_weight_update",
        "in_place": "announced",
        "behind": "announced",
        "woken": "wake_up",
        "reload": "reload_weights",
    }
    for way, seen_by in ways.items():
        for name in (f"clean {way}", f"after {way}"):
            assert (name, found[name]["findings"], found[name]["different"]) == (name, [], 0)
            assert seen_by in found[name]["how"]
        (finding,) = found[f"stale {way}"]["findings"]
        assert "the engine holds " in finding["sentence"]
    assert found["unseen"]["number"] > found["unannounced"]["number"]
    for name in ("unannounced", "unseen"):
        assert found[name]["how"] == ["in_place"]
        assert "norm.weight is neither" in found[name]["findings"][0]["sentence"]
