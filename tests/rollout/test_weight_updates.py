"""After an update in place the engine is the engine that a fresh load of the same weights would give, bit for bit."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from omni_rl.errors import WeightUpdateError
from omni_rl.rollout.types import Rescore, Rollout, SamplingSettings
from omni_rl.rollout.weights import CheckpointTensors
from omni_rl.sync.digest import weights_digest
from omni_rl.sync.version import WeightVersion
from tests.rollout.conftest import prompts

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SAMPLING = SamplingSettings(max_tokens=24, seed=5, ignore_eos=True)
FLOAT32_TOLERANCE = 1e-4


def moved(checkpoint: Path, dtype: str, number: int = 1) -> tuple[dict[str, torch.Tensor], str]:
    """Every floating tensor of the checkpoint changed visibly, as sync sends them, and their version."""
    generator = torch.Generator().manual_seed(number)
    tensors = dict(CheckpointTensors(checkpoint, getattr(torch, dtype)))
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            scale = 0.05 * tensor.float().abs().mean() + 1e-3
            shift = scale * torch.rand(tensor.shape, generator=generator)
            tensors[name] = (tensor.float() + shift).to(tensor.dtype)
    return tensors, str(WeightVersion("run", 1, number, weights_digest(tensors)))


def checkpoint_of(tensors: dict[str, torch.Tensor], like: Path, directory: Path) -> Path:
    shutil.copytree(like, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def storage(engine: Any) -> dict[str, torch.Tensor]:
    return {**dict(engine.model.named_parameters()), **dict(engine.model.named_buffers())}


def logprobs(results: list[Rollout] | list[Rescore]) -> list[list[float]]:
    return [result.logprobs.tolist() for result in results]


def render(engine: Any) -> Any:
    from omni_rl.media.renderer import Renderer

    return Renderer(engine.llm_engine).render(prompts())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_update_equals_a_fresh_load(
    dtype: str, start: Callable[..., Any], small_checkpoint: Path, tmp_path: Path
) -> None:
    engine = start(dtype)
    rendered = render(engine)
    before = engine.sample(rendered, SAMPLING)  # fills every cache with the old weights' features
    tensors, version = moved(small_checkpoint, dtype)
    old = {name: tensor.detach().clone() for name, tensor in storage(engine).items()}

    report = engine.update_weights(tensors, version)

    assert engine.weight_version == report.version == version
    assert report.tensors == len(tensors)
    fresh = start(dtype, model=checkpoint_of(tensors, small_checkpoint, tmp_path / "moved"))
    assert fresh.weight_version.split("/")[-1] == version.split("/")[-1]
    ours, theirs = storage(engine), storage(fresh)
    assert ours.keys() == theirs.keys()
    assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]
    written = [name for name in ours if not torch.equal(ours[name], old[name])]
    assert len(written) > 0.9 * len(old)
    for name, tensor in ours.items():
        if name.endswith((".mixer.A", "e_score_correction_bias")):
            assert tensor.dtype == torch.float32

    after, again = engine.sample(rendered, SAMPLING), fresh.sample(rendered, SAMPLING)
    assert logprobs(after) == logprobs(again)
    for one, two in zip(after, again, strict=True):
        np.testing.assert_array_equal(one.ids, two.ids)
        np.testing.assert_array_equal(one.experts, two.experts)
    assert logprobs(engine.rescore(before, alone=True)) == logprobs(fresh.rescore(before, alone=True))
    stale = logprobs(before)
    assert all(new != old for new, old in zip(logprobs(after), stale, strict=True)), "the update changed nothing"


def test_a_single_stale_tensor_would_be_seen(start: Callable[..., Any], small_checkpoint: Path) -> None:
    """The projector's weights are what vLLM's own reload leaves behind; images must feel them, text must not."""
    engine = start()
    answers = engine.sample(render(engine), SAMPLING)
    before = engine.rescore(answers, alone=True)
    tensors = dict(CheckpointTensors(small_checkpoint, torch.float32))
    tensors["mlp1.1.weight"] = tensors["mlp1.1.weight"] * 1.5
    engine.update_weights(tensors, str(WeightVersion("run", 1, 1, weights_digest(tensors))))
    after = engine.rescore(answers, alone=True)
    same = [old == new for old, new in zip(logprobs(before), logprobs(after), strict=True)]
    assert {answer.prompt.id: equal for answer, equal in zip(answers, same, strict=True)} == {
        "text": True,
        "images": False,
        "long sound": True,
        "short sound": True,
        "video": False,
        "mixed": False,
    }


def test_requests_under_way_are_computed_again(start: Callable[..., Any], small_checkpoint: Path) -> None:
    engine = start()
    rendered = render(engine)
    old, first_version = moved(small_checkpoint, "float32", 1)
    new, second_version = moved(small_checkpoint, "float32", 2)
    engine.update_weights(old, first_version)
    names = engine.submit(rendered, SAMPLING)
    finished: dict[str, Rollout] = {}
    for _ in range(6):
        finished |= engine.step()
    assert not finished
    engine.update_weights(new, second_version)
    while engine.busy:
        finished |= engine.step()
    answers = [finished[name] for name in names]
    cuts = []
    for answer in answers:
        one, two = answer.version_spans
        assert (one.version, two.version) == (first_version, second_version)
        assert (one.start, one.end, two.end) == (0, two.start, SAMPLING.max_tokens)
        assert 0 < one.end < SAMPLING.max_tokens
        cuts.append(one.end)
    under_new = engine.rescore(answers)
    engine.update_weights(old, first_version)
    under_old = engine.rescore(answers)
    for answer, cut, score_old, score_new in zip(answers, cuts, under_old, under_new, strict=True):
        assert np.abs(answer.logprobs - score_old.logprobs)[:cut].max() < FLOAT32_TOLERANCE
        assert np.abs(answer.logprobs - score_new.logprobs)[cut:].max() < FLOAT32_TOLERANCE
        assert np.abs(score_old.logprobs - score_new.logprobs).max() > 100 * FLOAT32_TOLERANCE
        np.testing.assert_array_equal(answer.experts, score_new.experts, err_msg=answer.prompt.id)


def test_what_is_not_the_engines_set_is_refused_and_nothing_written(
    start: Callable[..., Any], small_checkpoint: Path
) -> None:
    engine = start("bfloat16")
    tensors, version = moved(small_checkpoint, "bfloat16")
    before = {name: tensor.detach().clone() for name, tensor in storage(engine).items()}
    served = engine.weight_version
    bias = next(name for name in tensors if name.endswith("e_score_correction_bias"))
    norm = "language_model.backbone.norm_f.weight"
    without = {name: tensor for name, tensor in tensors.items() if name != norm}
    cases = [
        (without, f"1 missing: {norm}"),
        (tensors | {"language_model.extra": torch.zeros(1)}, "1 unexpected: language_model.extra"),
        (tensors | {bias: tensors[bias].bfloat16()}, f"{bias} .torch.bfloat16.* not torch.float32"),
        (tensors | {norm: tensors[norm][:-1]}, "wrong dtype or shape"),
        (tensors | {norm: tensors[norm] + 1}, "other weights, or were damaged"),
    ]
    for sent, message in cases:
        with pytest.raises(WeightUpdateError, match=message):
            engine.update_weights(sent, version)
    assert engine.weight_version == served
    assert not [name for name, tensor in storage(engine).items() if not torch.equal(tensor, before[name])]
    engine.update_weights(tensors, version)
