"""Released TRL, watched: a random Qwen2 and a random Qwen2-VL with colocated vLLM on the CPU, against a coordinator."""

import io
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from omni_rl import torchvision_schemas
from omni_rl.api.steps import StepAnswer
from omni_rl.client import Client
from tests.services.live import live
from tests.watch.conftest import CoordinatorProcess
from tests.watch.trl_pictures import picture
from tests.watch.trl_process import ENVIRONMENT, ROOT, TrlRun, trl_nursery
from tools import frameworks

pytestmark = pytest.mark.slow
Start = Callable[..., TrlRun]
PICTURE_TOKENS = 4
"""A picture's placeholders, as `write_qwen_vl` says."""
CLEAN = 1e-5
"""Mean abs d of float32 on both sides."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with live(tmp_path_factory.mktemp("trl")) as address:
        yield address


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torchvision_schemas.install()
    from tests.watch.trl_models import write_qwen

    return write_qwen(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def qwen_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torchvision_schemas.install()
    from tests.watch.trl_models import write_qwen_vl

    return write_qwen_vl(tmp_path_factory.mktemp("qwen-vl"))


@pytest.fixture(scope="module")
def nursery() -> Iterator[str]:
    with trl_nursery("tests.watch.trl_run") as address:
        yield address


@pytest.fixture
def start(tmp_path: Path, request: pytest.FixtureRequest, nursery: str) -> Iterator[Start]:
    """Starts a run that is named after its test."""
    runs: list[TrlRun] = []

    def begin(model: Path, url: str, **options: object) -> TrlRun:
        name = request.node.name.removeprefix("test_").replace("[", "-").rstrip("]")
        runs.append(TrlRun(tmp_path / name, model, url, nursery=nursery, **options))  # type: ignore[arg-type]
        return runs[-1]

    yield begin
    for run in runs:
        run.end()


def steps_of(url: str, run: TrlRun) -> list[StepAnswer]:
    """Every sealed step of a run's only attempt, in order."""
    with Client(url) as client:
        return [client.step(run.name, line.attempt, line.step) for line in client.steps(run.name)]


def size(step: StepAnswer) -> float:
    found = step.verdict.figures["overall"]["logprob_abs_diff_mean"]
    assert found is not None
    return found


def assert_clean(steps: list[StepAnswer], count: int) -> None:
    assert [step.verdict.step for step in steps] == list(range(count))
    assert [(step.verdict.severity, step.verdict.cause) for step in steps] == [("ok", None)] * count
    assert max(map(size, steps)) < CLEAN


@pytest.mark.parametrize("processes", [1, 2])
def test_a_clean_run_is_ok_at_every_step(start: Start, url: str, qwen: Path, processes: int) -> None:
    batch = {"per_device_train_batch_size": 16 // processes}
    run = start(qwen, url, processes=processes, settings=batch)
    log = run.wait()
    steps = steps_of(url, run)
    assert_clean(steps, 8)
    assert {step.verdict.samples for step in steps} == {16}
    # The latest verdict is in the trainer's own log, and the trainer's figures are with the step.
    assert {entry["omni_rl/severity"] for entry in log if "omni_rl/severity" in entry} == {0.0}
    assert steps[3].training["reward"] == pytest.approx(log[3]["reward"])
    assert steps[3].training.keys() >= {"loss", "grad_norm", "global_step"}
    with Client(url) as client:
        kept = client.sample(run.name, 1, 7, steps[7].verdict.worst[0].sample).record
    assert kept["sample"] in {f"{prompt}/{generation}" for prompt in range(4) for generation in range(4)}
    assert kept["prompt_text"].startswith("what is ")
    assert (kept["train_version"], kept["version_spans"][0]["version"]) == ("step-7", "step-7")
    assert kept["reward"] > 0
    assert len(kept["ids"]) == len(kept["rollout_logprobs"])


def test_the_example_is_watched_as_it_stands(url: str, qwen: Path, tmp_path: Path) -> None:
    started = [str(frameworks.python("trl")), str(ROOT / "tests/watch/trl_example.py")]
    command = [*started, str(ROOT / "examples/trl_grpo.py"), str(qwen), "--steps", "2"]
    environment = {**os.environ, **ENVIRONMENT, "OMNI_RL_URL": url}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    with Client(url) as client:
        steps = [client.step("trl-grpo", 1, line.step) for line in client.steps("trl-grpo")]
    assert_clean(steps, 2)
    assert "'omni_rl/severity': '0'" in done.stdout


@pytest.mark.parametrize(
    ("fault", "cause", "options"),
    [
        ("stale", "stale_weights", {}),
        ("temperature", "logprob_postprocessing", {}),
        ("late_mask", "loss_mask", {"tools": True}),
    ],
)
def test_a_fault_is_named_in_the_step_in_which_it_begins(
    start: Start, url: str, qwen: Path, fault: str, cause: str, options: dict[str, object]
) -> None:
    run = start(qwen, url, fault=fault, at=3, **options)
    run.wait()
    steps = steps_of(url, run)
    assert len(steps) == 8
    assert_clean(steps[:3], 3)
    assert steps[3].verdict.severity != "ok"
    assert steps[3].verdict.cause == cause


def test_a_strict_run_stops_before_it_learns_from_a_step_that_is_off(start: Start, url: str, qwen: Path) -> None:
    run = start(qwen, url, fault="stale", at=2, watch={"strict": True, "timeout": 60})
    run.wait_for_failure()
    assert "RunPausedError" in run.said
    assert "step 2 of" in run.said
    assert len(steps_of(url, run)) == 3


def test_an_engine_of_another_dtype_is_named_at_once(start: Start, url: str, qwen: Path) -> None:
    run = start(qwen, url, dtype="bfloat16")
    run.wait()
    steps = steps_of(url, run)
    assert [(step.verdict.severity, step.verdict.cause) for step in steps] == [("warn", "rounding")] * 8
    assert "the engine computes in bfloat16 and the trainer in float32" in steps[0].verdict.sentence


def test_a_tools_tokens_are_in_the_answer_and_count_in_no_figure(start: Start, url: str, qwen: Path) -> None:
    run = start(qwen, url, tools=True)
    run.wait()
    steps = steps_of(url, run)
    assert_clean(steps, 8)
    with Client(url) as client:
        kept = client.sample(run.name, 1, 0, steps[0].verdict.worst[0].sample).record
    assert not all(kept["loss_mask"])
    assert all(
        mask or logprob == 0.0 for mask, logprob in zip(kept["loss_mask"], kept["rollout_logprobs"], strict=True)
    )


def test_pictures_whose_placeholders_are_expanded_twice_are_named(start: Start, url: str, qwen_vl: Path) -> None:
    run = start(qwen_vl, url, images=True, settings={"max_steps": 3})
    run.wait()
    steps = steps_of(url, run)
    assert [step.verdict.cause for step in steps] == ["prompt_mismatch"] * 3
    assert all(step.verdict.severity != "ok" for step in steps)
    with Client(url) as client:
        record = client.sample(run.name, 1, 0, steps[0].verdict.worst[0].sample).record
    # The trainer's prompt is the record's, and its places are those in it.
    assert [(item["modality"], item["length"]) for item in record["media"]] == [("image", PICTURE_TOKENS)]


def test_pictures_whose_placeholders_are_expanded_once_are_ok(start: Start, url: str, qwen_vl: Path) -> None:
    run = start(qwen_vl, url, images=True, collapse=True, settings={"max_steps": 3})
    run.wait()
    steps = steps_of(url, run)
    assert_clean(steps, 3)
    assert "image" in steps[0].verdict.figures
    assert_pictures(url, run, steps[2])


def assert_pictures(url: str, run: TrlRun, step: StepAnswer) -> None:
    """Every kept answer has the picture of its prompt, at the place of its placeholders."""
    with Client(url) as client:
        kept = [client.sample(run.name, 1, step.verdict.step, one.sample).record for one in step.verdict.worst]
        assert len(kept) == 16
        for record in kept:
            (item,) = record["media"]
            number = int(re.search(r"what is (\d+) plus", record["prompt_text"])[1])  # type: ignore[index]
            seen = Image.open(io.BytesIO(client.media(item["content"])))
            assert np.array_equal(np.asarray(seen), picture(number))
            (place,) = set(record["prompt_ids"][item["offset"] : item["offset"] + item["length"]])
            assert (item["modality"], item["length"]) == ("image", record["prompt_ids"].count(place))
            assert item["length"] == PICTURE_TOKENS
        assert len({record["media"][0]["content"] for record in kept}) == 4
    assert "omni-rl" not in run.said  # nothing to log


def test_rloo_is_judged_by_logprobs_that_it_did_not_ask_for(start: Start, url: str, qwen: Path) -> None:
    run = start(qwen, url, trainer="rloo", fault="stale", at=4, settings={"max_steps": 6})
    run.wait()
    steps = steps_of(url, run)
    assert_clean(steps[:4], 4)
    assert steps[4].verdict.cause == "stale_weights"


def test_without_trls_own_correction_the_losss_logprobs_are_posted(start: Start, url: str, qwen: Path) -> None:
    settings = {
        "vllm_importance_sampling_correction": False,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "max_steps": 4,
    }
    run = start(qwen, url, settings=settings)
    run.wait()
    steps = steps_of(url, run)
    assert_clean(steps, 4)
    assert steps[0].verdict.samples == 16


def test_several_generations_of_one_optimizer_step_are_steps_of_their_own(start: Start, url: str, qwen: Path) -> None:
    settings = {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 1,
        "max_steps": 3,
    }
    run = start(qwen, url, settings=settings, watch={"correct": "tis"})
    run.wait()
    steps = steps_of(url, run)
    assert_clean(steps, 6)
    # The last generation of each optimizer step has what was learnt from it.
    assert [step.training["global_step"] for step in steps[1::2]] == [1.0, 2.0, 3.0]


def test_a_coordinator_that_is_killed_again_and_again_costs_the_run_nothing(
    start: Start, coordinator: CoordinatorProcess, qwen: Path
) -> None:
    coordinator.start()
    run = start(qwen, coordinator.url, settings={"max_steps": 60}, watch={"timeout": 120})
    seeded = random.Random(0)
    while "omni_rl/severity" not in run.said and run.running:
        time.sleep(0.05)
    kills = 0
    while run.running and kills < 6:
        time.sleep(seeded.uniform(0.0, 0.4))
        coordinator.kill(signal.SIGKILL)
        time.sleep(seeded.uniform(0.0, 0.3))
        coordinator.start()
        kills += 1
    run.wait()
    steps = steps_of(coordinator.url, run)
    assert_clean(steps, 60)
    assert {step.verdict.samples for step in steps} == {16}
    assert kills >= 2
