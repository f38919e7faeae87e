"""What is read of verl's configuration and batches, and what the hook does with them; verl itself is not needed."""

import io
import logging
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from omni_rl.client import Client
from omni_rl.consistency.corrections import Correction
from omni_rl.errors import RunPausedError
from omni_rl.watch import verl_correct
from omni_rl.watch.guard import guarded
from omni_rl.watch.verl import VerlWatch
from omni_rl.watch.verl_batch import Rows, step_values
from omni_rl.watch.verl_config import VerlRun
from omni_rl.watch.weights import token_weights
from tests.services.live import live
from tests.watch.conftest import CoordinatorProcess
from tests.watch.steps import step_of


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with live(tmp_path_factory.mktemp("verl")) as address:
        yield address


def config(**rollout: Any) -> dict[str, Any]:
    """As much of verl's resolved configuration as is looked at."""
    engine = {"name": "vllm", "dtype": "bfloat16", "temperature": 0.7, "logprobs_mode": "processed_logprobs"}
    return {
        "actor_rollout_ref": {
            "model": {"path": "Qwen/Qwen3-4B"},
            "rollout": {**engine, "calculate_log_probs": True, **rollout},
            "actor": {"strategy": "megatron", "megatron": {"dtype": "float16"}, "fsdp_config": {"dtype": "bfloat16"}},
        },
        "trainer": {"project_name": "maths", "experiment_name": "run 7"},
        "algorithm": {"rollout_correction": {"bypass_mode": False}},
    }


def batch(seed: int = 0, **drift: float) -> SimpleNamespace:
    """A `DataProto` with what the V1 trainer hands to `calculate_debug_metrics`."""
    step = step_of(seed, **drift)  # type: ignore[arg-type]
    return SimpleNamespace(
        batch={
            "responses": torch.from_numpy(step["ids"]),
            "response_mask": torch.from_numpy(step["mask"]).long(),
            "rollout_log_probs": torch.from_numpy(step["rollout_logprobs"]),
            "old_log_probs": torch.from_numpy(step["train_logprobs"]),
        },
        non_tensor_batch={},
    )


def test_a_configuration_tells_the_run() -> None:
    run = VerlRun.of(config())
    assert run is not None
    assert (run.name, run.model, run.dtype, run.train_dtype) == (
        "maths.run 7",
        "Qwen/Qwen3-4B",
        "bfloat16",
        "float16",
    )
    assert (run.temperature, run.logprobs_of, run.filtered, run.obstacle) == (0.7, "processed", None, "")
    assert VerlRun.of({"trainer": {"project_name": "sft"}}) is None


@pytest.mark.parametrize(
    ("rollout", "of"),
    [
        ({"logprobs_mode": None}, "raw"),  # releases without the setting
        ({"logprobs_mode": "processed_logits"}, "unknown"),
        ({"name": "sglang"}, "processed"),
        ({"name": "sglang", "top_p": 0.9}, "unknown"),
    ],
)
def test_which_distribution_the_logprobs_are_of(rollout: dict[str, Any], of: str) -> None:
    run = VerlRun.of(config(**rollout))
    assert run is not None
    assert run.logprobs_of == of


def test_what_stands_in_the_way_is_told_when_the_run_begins(caplog: pytest.LogCaptureFixture) -> None:
    eyes = VerlWatch()
    with caplog.at_level(logging.WARNING):
        eyes.begin(config(calculate_log_probs=False))
        given = config()
        given["algorithm"]["rollout_correction"]["bypass_mode"] = True
        eyes.begin(given)
    assert "set actor_rollout_ref.rollout.calculate_log_probs=True" in caplog.messages[0]
    assert "bypass_mode=False" in caplog.messages[1]
    assert eyes.logged({"loss": 1.0}) == {"loss": 1.0}


def test_the_older_trainers_batch_has_prompts_groups_rewards_and_media() -> None:
    data = batch()
    answers, width = data.batch["responses"].shape
    data.batch |= {
        "prompts": torch.arange(answers * 3).reshape(answers, 3),
        "attention_mask": torch.cat([torch.tensor([[0, 1, 1]] * answers), data.batch["response_mask"]], 1),
        "rm_scores": torch.nn.functional.one_hot(torch.full((answers,), width - 1), width).float(),
    }
    data.non_tensor_batch = {
        "uid": torch.arange(answers).numpy() // 4,
        "multi_modal_inputs": [{"pixel_values": 1, "image_grid_thw": 1}, {}] * (answers // 2),
    }
    values: Any = step_values(data, None, 6, None)
    assert values["prompt_mask"].tolist() == [[0, 1, 1]] * answers
    assert values["rewards"].tolist() == [1.0] * answers
    assert values["kinds"] == ["image", "text"] * (answers // 2)
    assert values["groups"] == [n // 4 for n in range(answers)]


def test_the_older_trainers_pictures_come_along(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_RL_URL", url)
    data, seen = batch(), Image.new("RGB", (7, 5), "red")
    answers = len(data.batch["responses"])
    # As verl's data set builds messages: a placeholder in a text becomes a part of its own.
    told = {"role": "system", "content": "be brief"}
    parts = [{"type": "image", "image": seen}, {"type": "text", "text": "what is this?"}]
    data.non_tensor_batch = {
        "raw_prompt": [[told, {"role": "user", "content": parts}], [told]] * (answers // 2),
        "multi_modal_inputs": [{"pixel_values": 1}, {}] * (answers // 2),
    }
    eyes = VerlWatch()
    given = config()
    given["trainer"]["experiment_name"] = "pictures"
    eyes.begin(given)
    eyes.scored(data)
    assert eyes.watcher is not None
    eyes.watcher.close(30)
    with Client(url) as client:
        kept = {n: client.sample(eyes.watcher.run, 1, 0, str(n)).record for n in range(answers)}
        digests = {record["media"][0]["content"] for n, record in kept.items() if n % 2 == 0}
        assert all("media" not in record for n, record in kept.items() if n % 2)
        (content,) = map(client.media, digests)
    assert Image.open(io.BytesIO(content)).tobytes() == seen.tobytes()


def test_the_v1_trainers_rows_have_groups_and_versions() -> None:
    tags = [{"min_global_steps": 4, "max_global_steps": 4 + n} for n in (0, 1)]
    values = step_values(batch(), None, 6, Rows(["a_0_0", "a_1_0"], tags))
    assert values["samples"] == ["a_0_0", "a_1_0"]
    # Of an answer that two versions sampled nobody knows which of them which token.
    assert (values["rollout_version"], values["train_version"]) == (["4", ""], "5")


def test_a_step_is_judged_and_its_verdict_is_in_its_own_metrics(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_RL_URL", url)
    monkeypatch.setenv("RANK", "3")  # of a node of Ray's, which is no rank of the run
    monkeypatch.setenv("WORLD_SIZE", "4")
    eyes = VerlWatch()
    eyes.begin(config())
    assert eyes.logged({"val/score": 0.5}) == {"val/score": 0.5}
    for step in (7, 8):
        assert eyes.watcher is None or not eyes.watcher.over_at_exit
        eyes.scores(step, None, final=step == 8)
        eyes.scored(batch(step))
        assert eyes.watcher is not None
        assert eyes.watcher.flush(30)
        metrics = eyes.logged({"timing_s/gen": 9.0, "critic/score/mean": 0.25})
        assert metrics["critic/score/mean"] == 0.25
        assert (metrics["omni_rl/step"], metrics["omni_rl/severity"]) == (float(step), 0.0)
    assert eyes.watcher is not None
    assert eyes.watcher.over_at_exit
    assert eyes.watcher.flush(30)
    with Client(url) as client:
        run = client.run("maths.run-7")
        assert (run.config.dtype, run.config.train_dtype, run.step) == ("bfloat16", "float16", 8)
        assert client.step("maths.run-7", 1, 8).training == {"critic.score.mean": 0.25}


def test_a_strict_run_stops_before_it_learns(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_RL_URL", url)
    monkeypatch.setenv("OMNI_RL_RUN", "strict")
    monkeypatch.setenv("OMNI_RL_STRICT", "1")
    eyes = VerlWatch()
    eyes.begin(config())
    data = batch()
    data.batch["old_log_probs"][0, 0] = float("nan")
    with pytest.raises(RunPausedError, match="nonfinite_logprobs"):
        guarded(lambda: eyes.scored(data))


def test_weights_go_where_verl_puts_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType(verl_correct.HELPER)
    found = batch(drift=0.5)

    def compute(batch: Any, config: Any) -> tuple[Any, dict[str, float]]:
        return batch, {"rollout_corr/kl": 0.1}

    module.compute_rollout_correction_and_add_to_batch = compute  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, verl_correct.HELPER, module)
    monkeypatch.setenv("OMNI_RL_CORRECT", "tis")
    VerlWatch().begin(config())
    VerlWatch().begin(config())  # a second run in one process wraps nothing twice
    _, metrics = module.compute_rollout_correction_and_add_to_batch(found, {})
    both = found.batch["rollout_log_probs"], found.batch["old_log_probs"]
    expected = token_weights(*both, found.batch["response_mask"], Correction("tis"))
    assert torch.equal(found.batch["rollout_is_weights"], expected)
    assert metrics.keys() == {"rollout_corr/kl", "omni_rl/weight_mean"}
    own = found.batch["rollout_is_weights"] = torch.ones_like(expected)
    module.compute_rollout_correction_and_add_to_batch(found, {})
    assert found.batch["rollout_is_weights"] is own
    # What cannot be weighed costs the run nothing but the weights.
    del found.batch["rollout_is_weights"], found.batch["rollout_log_probs"]
    _, metrics = module.compute_rollout_correction_and_add_to_batch(found, {})
    assert metrics == {"rollout_corr/kl": 0.1}


def test_a_method_that_there_is_not_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("OMNI_RL_CORRECT", "sit")
    with caplog.at_level(logging.WARNING):
        assert verl_correct.asked() is None
    assert "OMNI_RL_CORRECT=sit is none of none, tis" in caplog.text


@pytest.mark.slow
def test_a_batch_that_is_written_to_before_it_was_read_is_refused_and_not_judged(
    coordinator: CoordinatorProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OMNI_RL_URL", coordinator.url)
    eyes = VerlWatch()
    eyes.begin(config())
    batches = [batch(1), batch(2)]
    for one in batches:
        eyes.scored(one)
    batches[0].batch["old_log_probs"].mul_(0.5)
    coordinator.start()
    assert eyes.watcher is not None
    assert eyes.watcher.flush(60)
    assert (eyes.watcher.counts.refused, eyes.watcher.counts.sealed) == (1, 1)
    assert "step 0 was refused: the trainer wrote to train_logprobs before it was read" in caplog.text
