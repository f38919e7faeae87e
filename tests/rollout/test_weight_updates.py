"""After an update in place the engine is the engine that a fresh load of the same weights would give, bit for bit."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from omni_rl.errors import LayoutError, SlabError
from omni_rl.models.nemotron_omni.released import RELEASED
from omni_rl.rollout.types import Rescore, Rollout, SamplingSettings, VersionSpan
from omni_rl.sync.checkpoint import CheckpointTensors
from omni_rl.sync.replica import SlabRef
from tests.rollout.conftest import prompts, sealed, update

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SAMPLING = SamplingSettings(max_tokens=24, seed=5, ignore_eos=True)
FLOAT32_TOLERANCE = 1e-4


def moved(checkpoint: Path, dtype: str, number: int = 1) -> dict[str, torch.Tensor]:
    """Every floating tensor of the checkpoint changed visibly, as sync sends them."""
    generator = torch.Generator().manual_seed(number)
    tensors = dict(CheckpointTensors(checkpoint, getattr(torch, dtype), RELEASED))
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            scale = 0.05 * tensor.float().abs().mean() + 1e-3
            shift = scale * torch.rand(tensor.shape, generator=generator)
            tensors[name] = (tensor.float() + shift).to(tensor.dtype)
    return tensors


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
    probe = logprobs(engine.rescore(before, alone=True))
    same = dict(CheckpointTensors(small_checkpoint, getattr(torch, dtype), RELEASED))
    update(engine, sealed(same, dtype, 1, tmp_path / "0.slab"))
    assert logprobs(engine.rescore(before, alone=True)) == probe, "a sync of the same weights changed something"

    tensors = moved(small_checkpoint, dtype)
    old = {name: tensor.detach().clone() for name, tensor in storage(engine).items()}

    slab = sealed(tensors, dtype, 2, tmp_path / "1.slab")
    update(engine, slab)

    assert engine.weight_version == slab.version
    fresh = start(dtype, model=checkpoint_of(tensors, small_checkpoint, tmp_path / "moved"))
    assert fresh.weight_version.split("/")[-1] == slab.version.split("/")[-1]
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


def test_a_single_stale_tensor_would_be_seen(start: Callable[..., Any], small_checkpoint: Path, tmp_path: Path) -> None:
    """The projector's weights are what vLLM's own reload leaves behind; images must feel them, text must not."""
    engine = start()
    answers = engine.sample(render(engine), SAMPLING)
    before = engine.rescore(answers, alone=True)
    tensors = dict(CheckpointTensors(small_checkpoint, torch.float32, RELEASED))
    tensors["mlp1.1.weight"] = tensors["mlp1.1.weight"] * 1.5
    update(engine, sealed(tensors, "float32", 1, tmp_path / "1.slab"))
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


@pytest.mark.parametrize("chunk", [2048, 64])
def test_requests_under_way_are_computed_again(
    chunk: int, start: Callable[..., Any], small_checkpoint: Path, tmp_path: Path
) -> None:
    engine = start(max_num_batched_tokens=chunk)
    rendered = render(engine)
    old = sealed(moved(small_checkpoint, "float32", 1), "float32", 1, tmp_path / "1.slab")
    new = sealed(moved(small_checkpoint, "float32", 2), "float32", 2, tmp_path / "2.slab")
    update(engine, old)
    answers, cut = interrupted(engine, rendered, new, "recompute")
    under_new = engine.rescore(answers)
    update(engine, old)
    under_old = engine.rescore(answers)
    assert {score.version for score in under_old} == {old.version}
    assert {score.version for score in under_new} == {new.version}
    assert any(cut.values())
    for answer, score_old, score_new in zip(answers, under_old, under_new, strict=True):
        sampled = cut[answer.prompt.id]
        assert [span for span in answer.version_spans if span.mixed_state] == []
        assert covered(answer, old.version) == list(range(sampled))
        assert covered(answer, new.version) == list(range(sampled, SAMPLING.max_tokens))
        assert np.abs(answer.logprobs - score_old.logprobs)[:sampled].max(initial=0) < FLOAT32_TOLERANCE
        assert np.abs(answer.logprobs - score_new.logprobs)[sampled:].max() < FLOAT32_TOLERANCE
        assert np.abs(score_old.logprobs - score_new.logprobs).max() > 100 * FLOAT32_TOLERANCE
        np.testing.assert_array_equal(answer.experts, score_new.experts, err_msg=answer.prompt.id)


@pytest.mark.parametrize("chunk", [2048, 64])
def test_kept_state_is_marked_and_what_came_before_is_right(
    chunk: int, start: Callable[..., Any], small_checkpoint: Path, tmp_path: Path
) -> None:
    engine = start(max_num_batched_tokens=chunk)
    rendered = render(engine)
    old = sealed(moved(small_checkpoint, "float32", 1), "float32", 1, tmp_path / "1.slab")
    new = sealed(moved(small_checkpoint, "float32", 2), "float32", 2, tmp_path / "2.slab")
    update(engine, old)
    answers, cut = interrupted(engine, rendered, new, "keep")
    under_new = engine.rescore(answers)
    update(engine, old)
    under_old = engine.rescore(answers)
    mixed = [answer for answer in answers if any(span.mixed_state for span in answer.version_spans)]
    assert mixed
    for answer, score_old, score_new in zip(answers, under_old, under_new, strict=True):
        sampled = cut[answer.prompt.id]
        assert covered(answer, old.version) == list(range(sampled))
        assert np.abs(answer.logprobs - score_old.logprobs)[:sampled].max(initial=0) < FLOAT32_TOLERANCE
        after = np.abs(answer.logprobs - score_new.logprobs)[sampled:]
        if answer in mixed:
            assert [span.mixed_state for span in answer.version_spans] == [False] * (sampled > 0) + [True]
            assert after.max() > FLOAT32_TOLERANCE
        else:
            assert sampled == 0
            assert after.max() < FLOAT32_TOLERANCE


def test_state_kept_over_a_change_there_and_back_is_whole(
    start: Callable[..., Any], small_checkpoint: Path, tmp_path: Path
) -> None:
    """A sync with mode keep that is rolled back leaves the requests as if nothing had been."""
    engine = start()
    rendered = render(engine)
    old = sealed(moved(small_checkpoint, "float32", 1), "float32", 1, tmp_path / "1.slab")
    new = sealed(moved(small_checkpoint, "float32", 2), "float32", 2, tmp_path / "2.slab")
    update(engine, old)
    undisturbed = engine.sample(rendered, SAMPLING)
    names = engine.submit(rendered, SAMPLING)
    finished: dict[str, Rollout] = {}
    for _ in range(6):
        finished |= engine.step()
    engine.apply(new, "keep")
    engine.apply(old, "keep")
    while engine.busy:
        finished |= engine.step()
    for name, before in zip(names, undisturbed, strict=True):
        np.testing.assert_array_equal(finished[name].ids, before.ids)
        assert finished[name].version_spans == (VersionSpan(old.version, 0, SAMPLING.max_tokens),)


def test_scoring_alone_disturbs_nothing(start: Callable[..., Any]) -> None:
    engine = start()
    rendered = render(engine)
    undisturbed = engine.sample(rendered, SAMPLING)
    alone = engine.rescore(undisturbed, alone=True)
    names = engine.submit(rendered, SAMPLING)
    finished: dict[str, Rollout] = {}
    for answer, score in zip(undisturbed, alone, strict=True):
        finished |= engine.step()
        assert engine.rescore_alone(answer).logprobs.tolist() == score.logprobs.tolist()
    while engine.busy:
        finished |= engine.step()
    for name, before in zip(names, undisturbed, strict=True):
        np.testing.assert_array_equal(finished[name].ids, before.ids)
        assert np.abs(finished[name].logprobs - before.logprobs).max() < FLOAT32_TOLERANCE


def test_what_is_not_the_engines_set_is_refused_and_nothing_written(
    start: Callable[..., Any], small_checkpoint: Path, tmp_path: Path
) -> None:
    engine = start("bfloat16")
    tensors = moved(small_checkpoint, "bfloat16")
    before = {name: tensor.detach().clone() for name, tensor in storage(engine).items()}
    served = engine.weight_version
    norm = "language_model.backbone.norm_f.weight"
    without = {name: tensor for name, tensor in tensors.items() if name != norm}
    cases = [
        (without, norm),
        (tensors | {"language_model.extra": torch.zeros(1)}, "language_model.extra"),
        (tensors | {norm: tensors[norm][:-1]}, norm),
    ]
    for number, (sent, message) in enumerate(cases):
        with pytest.raises(LayoutError, match=message):
            engine.apply(sealed(sent, "bfloat16", number, tmp_path / f"{number}.slab"))
    right = sealed(tensors, "bfloat16", 9, tmp_path / "9.slab")
    with pytest.raises(SlabError, match="not run/1/8/00"):
        engine.apply(SlabRef(right.path, "run/1/8/00"))
    assert engine.weight_version == served
    assert not [name for name, tensor in storage(engine).items() if not torch.equal(tensor, before[name])]
    update(engine, right)


def interrupted(engine: Any, rendered: Any, new: SlabRef, mode: str) -> tuple[list[Rollout], dict[str, int]]:
    """Answers over which the weights changed, and how many tokens of each, by prompt, had been sampled before."""
    old = engine.weight_version
    names = engine.submit(rendered, SAMPLING)
    finished: dict[str, Rollout] = {}
    for _ in range(6):
        finished |= engine.step()
    assert not finished
    engine.apply(new, mode)
    assert not engine.verify(new).mismatches
    engine.serve_as(new.version)
    while engine.busy:
        finished |= engine.step()
    answers = [finished[name] for name in names]
    return answers, {answer.prompt.id: len(covered(answer, old)) for answer in answers}


def covered(answer: Rollout, version: str) -> list[int]:
    spans = (span for span in answer.version_spans if span.version == version)
    return [token for span in spans for token in range(span.start, span.end)]
