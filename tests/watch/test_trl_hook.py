"""What the hook does to a TRL trainer's batches, against a hand-written trainer: weights, and when a run is stopped."""

import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from PIL import Image

from omni_rl.client import Client
from omni_rl.errors import ConfigError, RunPausedError
from omni_rl.watch.trl import watch
from tests.services.live import live
from tests.watch.fake_trl import FakeLigerTrainer, FakeTrainer

ANSWERS, TOKENS = 4, 64
TOOL = slice(20, 30)
"""Columns that a tool wrote."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with live(tmp_path_factory.mktemp("trl-hook")) as address:
        yield address


def output(off: float = 0.0, *, tools: bool = False) -> dict[str, Any]:
    """A batch whose trainer is `off` from its engine, at every token that the policy sampled."""
    torch.manual_seed(0)
    rollout = -torch.rand(ANSWERS, TOKENS) - 0.1
    train = rollout + off
    found = {
        "prompt_ids": torch.ones(ANSWERS, 3, dtype=torch.int64),
        "prompt_mask": torch.ones(ANSWERS, 3, dtype=torch.int64),
        "completion_ids": torch.randint(0, 100, (ANSWERS, TOKENS)),
        "completion_mask": torch.ones(ANSWERS, TOKENS, dtype=torch.int64),
        "sampling_per_token_logps": rollout,
        "old_per_token_logps": train,
        "importance_sampling_ratio": torch.full((ANSWERS, TOKENS), 7.0),
    }
    if tools:
        # As TRL: the engine gave no logprob of these, and the trainer scored them like any other.
        rollout[:, TOOL], train[:, TOOL] = 0.0, -5.0
        found["tool_mask"] = torch.ones(ANSWERS, TOKENS, dtype=torch.int64)
        found["tool_mask"][:, TOOL] = 0
    return found


def test_without_a_rule_trls_own_ratio_stays(url: str) -> None:
    trainer = FakeTrainer(output(0.1))
    watcher = watch(trainer, url=url, run="own")
    assert trainer.step()["importance_sampling_ratio"].eq(7.0).all()
    watcher.close(30)
    assert watcher.counts.sealed == 1


def test_weights_take_the_place_of_trls_ratio(url: str) -> None:
    trainer = FakeTrainer(output(0.1))
    watcher = watch(trainer, url=url, run="weighed", correct="tis")
    assert torch.allclose(trainer.step()["importance_sampling_ratio"], torch.tensor(0.1).exp())
    watcher.close(30)


@pytest.mark.parametrize("rule", ["tis", "geometric", "sequence_tis", "sequence_mis"])
def test_a_tools_tokens_enter_no_weight(url: str, rule: Any) -> None:
    trainer = FakeTrainer(output(tools=True))
    watcher = watch(trainer, url=url, run=f"tools-{rule}", correct=rule)
    batch = trainer.step()
    assert batch["importance_sampling_ratio"].equal(batch["tool_mask"].float())
    watcher.close(30)


def test_weights_are_refused_where_trl_has_no_place_for_them(url: str) -> None:
    trainer = FakeTrainer(output())
    trainer.vllm_importance_sampling_correction = False
    with pytest.raises(ConfigError, match="vllm_importance_sampling_correction=True"):
        watch(trainer, url=url, correct="tis")


def test_a_strict_run_is_stopped_before_the_loss_has_the_batch(url: str) -> None:
    trainer = FakeTrainer(output(1.0))
    watcher = watch(trainer, url=url, run="strict", strict=True, timeout=60)
    with pytest.raises(RunPausedError, match="step 0 of strict"):
        trainer.step()
    watcher.close(30)


def test_an_engines_logprobs_are_posted_where_the_batch_has_none(url: str) -> None:
    given = output()
    del given["importance_sampling_ratio"]
    given["old_logps"] = given["old_per_token_logps"].sum(1)
    trainer = FakeTrainer(given)
    trainer.drop("sampling_per_token_logps", "old_per_token_logps")
    watcher = watch(trainer, url=url, run="rloo")
    trainer.step()
    verdict = watcher.wait(0, 30)
    assert verdict is not None
    assert (verdict.severity, verdict.tokens) == ("ok", ANSWERS * TOKENS)
    watcher.close(30)


def test_a_references_logprobs_are_not_the_policys(url: str) -> None:
    """TRL's GRPO with an adapter, beta and no correction scores its reference alone, as the same model."""
    trainer = FakeTrainer(output())
    trainer.vllm_importance_sampling_correction = False
    trainer.drop("old_per_token_logps", "importance_sampling_ratio")
    policys = trainer.scored
    trainer.scored = (policys[0] - 1.0, None, None)
    watcher = watch(trainer, url=url, run="reference")
    batch = trainer._generate_and_score_completions([trainer.row] * ANSWERS)
    trainer.scored = policys
    trainer._compute_loss(trainer.model, batch)
    verdict = watcher.wait(0, 30)
    assert verdict is not None
    assert verdict.figures["overall"]["logprob_abs_diff_max"] == 0.0
    watcher.close(30)


def test_a_policy_in_bfloat16_is_watched_where_the_loss_supplies_its_logprobs(url: str) -> None:
    trainer = FakeTrainer(output())
    trainer.vllm_importance_sampling_correction = False
    trainer.drop("old_per_token_logps", "importance_sampling_ratio")
    policys = trainer.scored[0].bfloat16()
    watcher = watch(trainer, url=url, run="bfloat16")
    batch = trainer._generate_and_score_completions([trainer.row] * ANSWERS)
    for rows in (slice(0, 2), slice(2, None)):
        trainer.scored = (policys[rows], None, None)
        trainer._compute_loss(trainer.model, {name: value[rows] for name, value in batch.items()})
    verdict = watcher.wait(0, 30)
    assert verdict is not None
    assert (verdict.tokens, verdict.cause) == (ANSWERS * TOKENS, "rounding")
    watcher.close(30)


@pytest.mark.parametrize("corrected", [True, False])
def test_ligers_loss_of_older_trls_is_told_of_where_it_alone_would_score(
    url: str, corrected: bool, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = FakeLigerTrainer(output())
    if not corrected:
        trainer.vllm_importance_sampling_correction = False
        trainer.drop("old_per_token_logps", "importance_sampling_ratio")
    watcher = watch(trainer, url=url, run=f"liger-{corrected}")
    for _ in range(2):
        trainer.compute_loss(trainer.model, trainer.step())
    watcher.close(30)
    assert watcher.counts.sealed == (2 if corrected else 0)
    told = [record for record in caplog.records if "use_liger_kernel=False" in record.getMessage()]
    assert len(told) == (0 if corrected else 1)


ODD_PROMPTS: list[Any] = [
    "a\0b",
    "half \ud83d of a pair",
    "x" * (1 << 20) + "y",
    [{"role": "user", "content": ["plain", {"type": "image"}, {"type": "text", "text": "text"}]}],
    [{"role": "user", "content": [7]}],
    None,
]


@pytest.mark.parametrize("prompt", ODD_PROMPTS)
def test_an_odd_prompt_costs_no_step(url: str, prompt: Any) -> None:
    trainer = FakeTrainer(output())
    trainer.row = {"prompt": prompt}
    watcher = watch(trainer, url=url, run=f"odd-prompt-{ODD_PROMPTS.index(prompt)}")
    trainer.step()
    watcher.close(30)
    assert watcher.counts.sealed == 1


def test_a_trl_that_answers_otherwise_is_told_of_and_goes_on(url: str, caplog: pytest.LogCaptureFixture) -> None:
    trainer = FakeTrainer(output())
    trainer.vllm_generation.answers = (*trainer.vllm_generation.answers, "something new")
    trainer.scored = {"logps": trainer.scored[0]}
    watcher = watch(trainer, url=url, run="another")
    trainer.step()
    trainer.step()
    watcher.close(30)
    assert watcher.counts.sealed == 2  # by what the batch says
    said = [record.getMessage().partition(": ")[2] for record in caplog.records]
    assert [line.partition(":")[0] for line in said] == [
        "the engine's prompts are not compared",
        "the policy's logprobs are not taken as it scores",
    ]


def assert_pictures(url: str, run: str, seen: Image.Image, places: list[tuple[int, int]]) -> None:
    """Every kept answer has that picture, once for each place."""
    with Client(url) as client:
        worst = client.step(run, 1, 0).verdict.worst
        media = [client.sample(run, 1, 0, one.sample).record["media"] for one in worst]
        assert [[(item["offset"], item["length"]) for item in items] for items in media] == [places] * ANSWERS
        (digest,) = {item["content"] for items in media for item in items}
        assert Image.open(io.BytesIO(client.media(digest))).tobytes() == seen.tobytes()


@pytest.mark.parametrize("name", ["image_token_id", "image_token_index"])
def test_pictures_come_along_as_the_engine_was_handed_them(
    url: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = output()
    given["prompt_ids"][:, 1:] = 5
    seen = Image.new("RGB", (7, 5), "red")
    trainer = FakeTrainer(given | {"num_images": [2] * ANSWERS})  # the second came with a tool's answer
    trainer.pictures = [[seen]] * ANSWERS
    monkeypatch.setattr(trainer.model.config, name, 5, raising=False)
    run = f"handed-{name}"
    watcher = watch(trainer, url=url, run=run)
    trainer.step()
    watcher.close(30)
    assert_pictures(url, run, seen, [(1, 2)])


@pytest.mark.parametrize("column", ["image", "images"])
def test_a_rollout_functions_pictures_are_the_data_sets(url: str, column: str) -> None:
    seen = Image.new("RGB", (7, 5), "blue")
    trainer = FakeTrainer(output() | {"num_images": [1] * ANSWERS})
    trainer.row = {"prompt": "a question", column: seen if column == "image" else [seen]}
    watcher = watch(trainer, url=url, run=f"columns-{column}")
    trainer.step()
    watcher.close(30)
    assert_pictures(url, f"columns-{column}", seen, [(0, 0)])  # no token is known for the model's pictures


def test_no_picture_leaves_the_machine_if_so_asked(url: str) -> None:
    trainer = FakeTrainer(output() | {"num_images": [1] * ANSWERS})
    trainer.pictures = [[Image.new("RGB", (7, 5), "red")]] * ANSWERS
    watcher = watch(trainer, url=url, run="not-asked", pictures=False)
    trainer.step()
    watcher.close(30)
    with Client(url) as client:
        record = client.sample("not-asked", 1, 0, "0/0").record
    assert (record["kind"], record.get("media")) == ("image", None)


@pytest.mark.parametrize("dies", [False, True])
def test_a_run_is_over_where_training_returned(url: str, dies: bool) -> None:
    trainer = FakeTrainer(output())
    watcher = watch(trainer, url=url, run="over")
    trainer.train()
    if dies:
        trainer.drop("completion_mask")
        with pytest.raises(KeyError):
            trainer.train()  # a second time
    assert watcher.over_at_exit is not dies
    watcher.close(30)


def test_evaluation_is_not_watched(url: str) -> None:
    trainer = FakeTrainer(output(1.0))
    watcher = watch(trainer, url=url, run="evaluation", strict=True, timeout=60)
    trainer.model.eval()
    trainer.step()
    watcher.close(30)
    assert watcher.counts.given == 0
