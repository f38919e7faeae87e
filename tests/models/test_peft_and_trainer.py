"""PEFT's adapters and transformers' Trainer on the model, as released, in an environment of their own."""

import json
import subprocess
from typing import Any

import pytest

from tests.watch.trl_process import ENVIRONMENT
from tools import frameworks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `peft_driver` found."""
    out = tmp_path_factory.mktemp("peft")
    command = [str(frameworks.python("trl")), "-m", "tests.models.peft_driver", str(out)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    result: dict[str, Any] = json.loads((out / "found.json").read_text())
    return result


@pytest.mark.parametrize("way", ["plain", "causal"])
def test_every_adapter_learns_and_merging_loading_and_scoring_agree(found: dict[str, Any], way: str) -> None:
    adapters = found[way]
    # A and B of q, k, v, o; in and out of two Mamba blocks; up and down of an MLP and two shared experts; the head.
    assert adapters["adapters"] == 2 * (4 + 2 * 2 + 3 * 2 + 1)
    assert adapters["without gradient"] == []
    assert adapters["losses"][-1] < adapters["losses"][0] - 0.5
    for comparison in ("merged", "loaded", "saved", "scored"):
        mean, greatest = adapters[comparison]
        assert mean < 1e-5, comparison
        assert greatest < 1e-4, comparison


@pytest.mark.parametrize("way", ["plain", "causal"])
def test_a_wrapped_base_is_not_saved_under_names_that_nothing_loads(found: dict[str, Any], way: str) -> None:
    assert "merge_and_unload" in found[way]["refused"]
    assert "lora_A" in found[way]["refused"]


def test_the_trainer_learns_and_accumulated_steps_are_the_same_steps(found: dict[str, Any]) -> None:
    assert found["trainer"][-1] < found["trainer"][0] - 1
    assert found["trainer accumulating"] == pytest.approx(found["trainer"], rel=0.02)
    assert found["trainer bfloat16"] == pytest.approx(found["trainer"], rel=0.05)
