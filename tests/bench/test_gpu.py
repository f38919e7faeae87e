"""The GPU benchmark where there is no GPU: answers fit the model, figures are reduced, failed parts are kept."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.nemotron_omni.feature_counts import feature_counts
from omni_rl.train.types import Score
from omni_rl_bench.gpu import command
from omni_rl_bench.gpu.agreement import figures
from omni_rl_bench.gpu.answers import OF_KIND, PER_KIND, answers, text_answers
from omni_rl_bench.gpu.gradients import errors
from omni_rl_bench.gpu.released_shape import build
from omni_rl_bench.gpu.wide import active_parameters
from omni_rl_bench.result import BenchmarkError


def test_answers_of_every_kind_fit_the_model(small_checkpoint: Path) -> None:
    made = answers(small_checkpoint)
    assert Counter(answer.prompt.kind for answer in made) == dict.fromkeys(OF_KIND, PER_KIND)
    config = NemotronOmniConfig.from_pretrained(small_checkpoint)
    feature_counts(config).check([answer.prompt for answer in made])
    again = answers(small_checkpoint)
    assert all(a.engine_digests == b.engine_digests for a, b in zip(made, again, strict=True))
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(made, again, strict=True))
    text = text_answers(config, 2, 5, 3)
    assert [(len(answer.prompt.ids), len(answer.ids)) for answer in text] == [(5, 3), (5, 3)]


def test_figures_say_how_far_scores_are_apart_by_kind(small_checkpoint: Path) -> None:
    given = answers(small_checkpoint)
    host = [Score(np.zeros(len(answer.ids)), None, None, (), "v") for answer in given]
    device = [
        Score(np.full(len(answer.ids), 0.5 * (answer.prompt.kind == "audio")), None, None, (), "v") for answer in given
    ]
    found = figures(host, device, given, "float32")
    assert {kind: each["logprob_abs_diff_max"] for kind, each in found.items()} == {
        **dict.fromkeys(OF_KIND, 0.0),
        "audio": 0.5,
    }
    assert json.loads(json.dumps(found)) == found


def test_the_worst_gradient_is_named_first() -> None:
    exact = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([1.0]), "none": torch.zeros(2)}
    found = {"a": torch.tensor([3.0, 4.5]), "b": torch.tensor([1.5]), "none": torch.zeros(2)}
    assert errors(exact, found) == [
        {"parameter": "b", "error": 0.5, "norm": 1.0},
        {"parameter": "a", "error": pytest.approx(0.1), "norm": 5.0},
    ]


def test_a_token_of_the_released_shape_meets_three_billion_parameters() -> None:
    assert active_parameters(build()) == 3_227_749_184


def test_goals_are_of_the_parts_that_ran() -> None:
    apart = {"logprob_abs_diff_mean": 1e-6, "logprob_abs_diff_max": 2e-4}
    results = {
        "agreement": {"float32": {"device_against_host": {"text": apart}}, "bfloat16": {"error": "no"}},
        "gradients": {"float32": {"error": "no"}, "bfloat16": {}},
        "trainer": {"float32": {"equal": {"digest": True, "slab": False}}, "bfloat16": {"error": "no"}},
    }
    assert [(goal.value, goal.met) for goal in command.goals(results)] == [(1e-6, True), (2e-4, False), (0.5, False)]
    assert list(command.goals({"card": {"error": "no"}})) == []


def test_a_part_that_fails_is_in_the_result_beside_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(what: list[str], *_: object) -> dict[str, object]:
        return {"error": "no device"} if what[0] in ("step", "trainer") else {"what": what}

    monkeypatch.setattr(command, "_run", run)
    said: list[str] = []
    path = command.bench_gpu(tmp_path, ["step", "card", "trainer", "agreement"], said.append)
    results = json.loads(path.read_text())["results"]
    assert list(results) == ["card", "agreement", "trainer", "step"]
    assert results["agreement"]["bfloat16"] == {"what": ["agreement", "bfloat16"]}
    assert results["step"] == {"error": "no device"}
    assert said[-1] == 'step: {"error": "no device"}'
    with pytest.raises(BenchmarkError, match="no device"):
        command.bench_gpu(tmp_path, ["step"], said.append)
    with pytest.raises(BenchmarkError, match=r"no such part: all; there are card, .*weights"):
        command.bench_gpu(tmp_path, ["all"], said.append)


@pytest.mark.slow
def test_without_a_device_a_part_says_so(small_checkpoint: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert "CUDA" in str(command._run(["scoring"], small_checkpoint)["error"])
