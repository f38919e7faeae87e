"""One engine with the real vLLM: what it samples is what it rescores, whatever the company, the chunks or the cache."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from omni_rl.errors import EngineDeadError, PromptError
from omni_rl.media.renderer import Renderer
from omni_rl.media.types import Prompt, RenderedPrompt
from omni_rl.rollout.types import Rescore, Rollout, SamplingSettings
from omni_rl.sync.replica import SlabRef
from tests.rollout.conftest import prompts

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SAMPLING = SamplingSettings(max_tokens=24, seed=5, ignore_eos=True)
# Prefill, decode, chunks and neighbours differ in the order of float32 sums only.
FLOAT32_TOLERANCE = 1e-4


def render(engine: Any, count: int | None = None) -> list[RenderedPrompt]:
    return Renderer(engine.llm_engine).render(prompts()[:count])


def assert_same(answers: list[Rollout], scores: list[Rescore]) -> None:
    for answer, score in zip(answers, scores, strict=True):
        assert np.abs(answer.logprobs - score.logprobs).max() < FLOAT32_TOLERANCE, answer.prompt.id
        assert answer.experts is not None
        np.testing.assert_array_equal(answer.experts, score.experts, err_msg=answer.prompt.id)


def test_prefill_gives_what_decode_gave_in_a_batch_and_alone(start: Callable[..., Any]) -> None:
    engine = start()
    rendered = render(engine)
    seen: list[int] = []
    answers = engine.sample(rendered, SAMPLING, seen.append)
    assert seen[-1] == len(rendered) * SAMPLING.max_tokens
    assert seen == sorted(seen)
    assert [answer.prompt.id for answer in answers] == [prompt.id for prompt in rendered]
    for answer in answers:
        assert len(answer.ids) == SAMPLING.max_tokens
        assert answer.finish_reason == "length"
        assert answer.experts is not None
        assert answer.experts.shape == (len(answer.prompt.ids) + SAMPLING.max_tokens - 1, 2, 2)
        assert (np.diff(answer.experts, axis=2) > 0).all(), "two different experts, in order"
        (span,) = answer.version_spans
        assert (span.version, span.start, span.end) == (engine.weight_version, 0, SAMPLING.max_tokens)
    assert_same(answers, engine.rescore(answers))
    assert_same(answers, engine.rescore(answers, alone=True))


def test_company_and_chunks_change_nothing(start: Callable[..., Any]) -> None:
    engine = start()
    rendered = render(engine)
    answers = engine.sample(rendered, SAMPLING)
    alone = [
        engine.sample([prompt], replace(SAMPLING, seed=SAMPLING.seed + index))[0]
        for index, prompt in enumerate(rendered)
    ]
    odd = list(range(1, len(rendered), 2))
    share = engine.sample([rendered[place] for place in odd], SAMPLING, places=odd)
    assert [answer.ids.tolist() for answer in share] == [answers[place].ids.tolist() for place in odd]
    chunked = start(max_num_batched_tokens=40, max_num_seqs=3)
    in_chunks = chunked.sample(rendered, SAMPLING)
    assert max(len(prompt.ids) for prompt in rendered) > 2 * 40, "no prompt was cut into chunks"
    for other in (alone, in_chunks):
        for answer, same in zip(answers, other, strict=True):
            np.testing.assert_array_equal(answer.ids, same.ids)
        assert_same(answers, [Rescore(same.logprobs, same.experts) for same in other])
    assert_same(answers, chunked.rescore(answers))


def test_requests_that_were_pushed_out_and_computed_again_come_out_the_same(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(max_model_len=512)
    rendered = render(engine)
    longer = replace(SAMPLING, max_tokens=200)
    answers = engine.sample(rendered, longer)
    cramped = start(max_model_len=512, kv_cache_memory_bytes=2 * 2**20)
    scheduler = cramped.llm_engine.engine_core.engine_core.scheduler
    preempt, pushed_out = scheduler._preempt_request, []

    def count(request: Any, *arguments: Any, **keywords: Any) -> Any:
        pushed_out.append(request.request_id)
        return preempt(request, *arguments, **keywords)

    monkeypatch.setattr(scheduler, "_preempt_request", count)
    again = cramped.sample(rendered, longer)
    assert pushed_out, "the cache was large enough for all"
    for answer, same in zip(answers, again, strict=True):
        np.testing.assert_array_equal(answer.ids, same.ids)
    assert_same(answers, [Rescore(same.logprobs, same.experts) for same in again])


def test_a_router_whose_bias_forces_the_choice_is_recorded_so(start: Callable[..., Any]) -> None:
    engine = start()
    for name, parameter in engine.model.named_parameters():
        if name.endswith("e_score_correction_bias"):
            parameter.data.fill_(0.0)
            parameter.data[[1, 6]] = 100.0
    (answer,) = engine.sample(render(engine, 1), SAMPLING)
    assert answer.experts is not None
    assert (answer.experts == np.array([1, 6])).all()


def test_digests_are_of_what_the_model_received(start: Callable[..., Any]) -> None:
    engine = start()
    rendered = render(engine)
    for _ in range(2):  # the second time out of the encoder cache
        for answer in engine.sample([*rendered, *rendered], SAMPLING):
            assert answer.engine_digests == tuple(item.digests for item in answer.prompt.items)
    picture = prompts()[1].images[0]
    twice = Prompt("twice", "once <image> twice <image>", images=(picture, picture))
    (answer,) = engine.sample(Renderer(engine.llm_engine).render([twice]), SAMPLING)
    assert answer.engine_digests == tuple(item.digests for item in answer.prompt.items)
    (image, other) = rendered[1].items
    touched = image.tensors["pixel_values_flat"].clone()
    touched[0, 0, 0] += 1
    damaged = replace(image, tensors=image.tensors | {"pixel_values_flat": touched}, content_hash="damaged")
    (answer,) = engine.sample([replace(rendered[1], items=(damaged, other))], SAMPLING)
    first, second = answer.engine_digests
    assert first["pixel_values_flat"] != damaged.digests["pixel_values_flat"]
    assert first["imgs_sizes"] == damaged.digests["imgs_sizes"]
    assert second == other.digests


def test_temperature_is_in_the_logprobs(start: Callable[..., Any]) -> None:
    engine = start(record_experts=False)
    (cold,) = engine.sample(render(engine, 1), replace(SAMPLING, temperature=0.5))
    (score,) = engine.rescore([cold])
    assert cold.experts is None
    assert score.experts is None
    difference = np.abs(cold.logprobs - score.logprobs)
    assert difference.max() > 0.05, "rescoring is at temperature 1"


def test_a_prompt_that_cannot_be_answered_is_refused_before_anything_starts(start: Callable[..., Any]) -> None:
    engine = start(max_model_len=128)
    text, images = render(engine, 2)
    with pytest.raises(PromptError, match=r"'images'.*raise max_model_len"):
        engine.sample([text, images], replace(SAMPLING, max_tokens=90))
    impossible = replace(text, id="impossible", ids=np.append(text.ids, 10**6))
    with pytest.raises(PromptError, match="'impossible': the engine refused it"):
        engine.sample([text, impossible], SAMPLING)
    assert not engine.busy
    assert engine.rescore([]) == []
    longest = SamplingSettings(max_tokens=128 - len(text.ids) - 1, ignore_eos=True)
    answers = engine.sample([text], longest)
    assert_same(answers, engine.rescore(answers))


def test_an_engine_that_threw_is_refused_at_once(start: Callable[..., Any]) -> None:
    engine = start()
    rendered = render(engine)
    answers = engine.sample(rendered[:1], SAMPLING)
    (image, other) = rendered[1].items
    pixels = image.tensors["pixel_values_flat"]
    four = replace(image, tensors=image.tensors | {"pixel_values_flat": torch.cat([pixels, pixels[:1]])})
    with pytest.raises(EngineDeadError, match="a step ended in"):
        engine.sample([replace(rendered[1], items=(replace(four, content_hash="four channels"), other))], SAMPLING)
    calls: list[Callable[[], Any]] = [
        lambda: engine.sample(rendered[:1], SAMPLING),
        lambda: engine.rescore(answers),
        lambda: engine.apply(SlabRef("nowhere", "run/1/1/00")),
        lambda: engine.step(),
        lambda: engine.weight_version,
    ]
    for call in calls:
        with pytest.raises(EngineDeadError, match="dead"):
            call()
