"""The engine, given our rendering, does what it does with the raw prompt, on the very tensors of the rendering."""

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from omni_rl.kinds import KINDS, Kind
from omni_rl.media.engine_input import to_engine_input
from omni_rl.media.renderer import Renderer
from omni_rl.media.types import Prompt, RenderedPrompt, Sound
from omni_rl.tasks.samples import demo_prompts

pytestmark = pytest.mark.slow

RawPrompt = Callable[[Prompt], dict[str, Any]]
TOKENS = 12


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def engine(request: pytest.FixtureRequest, small_checkpoint: Path) -> Iterator[Any]:
    from omni_rl.rollout.engine import RolloutEngine
    from omni_rl.rollout.settings import EngineSettings

    engine = RolloutEngine(EngineSettings(model=small_checkpoint, dtype=request.param))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def renderer(engine: Any) -> Renderer:
    return Renderer(engine.llm_engine)


def finish(engine: Any, inputs: list[Any]) -> list[tuple[list[int], list[int], list[float]]]:
    """(prompt ids, sampled ids, their logprobs) of each input, one at a time with cold caches."""
    from vllm import SamplingParams

    results = []
    for number, given in enumerate(inputs):
        engine.llm_engine.reset_encoder_cache()
        params = SamplingParams(max_tokens=TOKENS, temperature=1.0, seed=number, logprobs=0, ignore_eos=True)
        engine.llm_engine.add_request(str(number), given, params)
        outputs: list[Any] = []
        while engine.llm_engine.has_unfinished_requests():
            outputs += engine.llm_engine.step()
        ids, logprobs = [], []
        for output in outputs:
            ids += list(output.outputs[0].token_ids)
            steps = output.outputs[0].logprobs
            logprobs += [step[token].logprob for step, token in zip(steps, output.outputs[0].token_ids, strict=True)]
        results.append((list(outputs[0].prompt_token_ids), ids[-TOKENS:], logprobs[-TOKENS:]))
    return results


def crossed(rendered: RenderedPrompt) -> RenderedPrompt:
    return pickle.loads(pickle.dumps(rendered))  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_vllm_gives_the_same_ids_and_logprobs_for_the_raw_prompt(
    engine: Any, renderer: Renderer, raw: RawPrompt, kind: Kind
) -> None:
    prompts = demo_prompts(kind, 4, 5)
    rendered = renderer.render(prompts)
    ours = finish(engine, [to_engine_input(crossed(item), item.ids) for item in rendered])
    theirs = finish(engine, [raw(prompt) for prompt in prompts])
    for item, mine, vllms in zip(rendered, ours, theirs, strict=True):
        assert item.ids.tolist() == mine[0] == vllms[0]
        assert mine[1] == vllms[1]
        assert mine[2] == vllms[2]


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_receives_the_renderings_tensors(
    engine: Any, renderer: Renderer, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[dict[str, Any]] = []
    embed = engine.model.embed_multimodal

    def spy(**kwargs: Any) -> Any:
        received.append(kwargs)
        return embed(**kwargs)

    monkeypatch.setattr(engine.model, "embed_multimodal", spy)
    for rendered in renderer.render(demo_prompts(kind, 4, 6)):
        received.clear()
        finish(engine, [to_engine_input(crossed(rendered), rendered.ids)])
        values = {name: list(value) for kwargs in received for name, value in kwargs.items()}
        assert (not values) == (kind == "text")
        for item in rendered.items:
            for name, tensor in item.tensors.items():
                rows = name in ("input_audio_features", "feature_attention_mask", "pixel_values_flat_video")
                given = (
                    torch.stack([values[name].pop(0) for _ in tensor]) if rows else torch.as_tensor(values[name].pop(0))
                )
                assert given.dtype == tensor.dtype, name
                assert torch.equal(given, tensor), name
        assert not any(values.values())


@pytest.mark.parametrize("kind", KINDS)
def test_digests_of_both_sides_are_equal_in_a_batch(engine: Any, renderer: Renderer, kind: Kind) -> None:
    from omni_rl.rollout.types import SamplingSettings

    rendered = [crossed(item) for item in renderer.render(demo_prompts(kind, 8, 9))]
    for rollout in engine.sample(rendered, SamplingSettings(max_tokens=2, ignore_eos=True)):
        assert rollout.engine_digests == tuple(item.digests for item in rollout.prompt.items)
        assert len(rollout.engine_digests) == len(rollout.prompt.items)


def test_many_items_of_different_shapes_in_one_prompt(engine: Any, renderer: Renderer, raw: RawPrompt) -> None:
    from omni_rl.rollout.types import SamplingSettings

    rng = np.random.default_rng(0)
    sizes = ((64, 64), (300, 40), (50, 200), (500, 500))
    pictures = tuple(Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes)
    sounds = tuple(Sound(rng.normal(0, 0.1, n).astype(np.float32), 16_000) for n in (3000, 40_000))
    text = "<so_embedding>a<image><image>b<image><so_embedding><image>"
    (rendered,) = renderer.render([Prompt("many", text, pictures, sounds)])
    assert [item.modality for item in rendered.items] == ["audio", "image", "image", "image", "audio", "image"]
    (rollout,) = engine.sample([crossed(rendered)], SamplingSettings(max_tokens=2, ignore_eos=True))
    assert rollout.engine_digests == tuple(item.digests for item in rendered.items)
    ours, theirs = (
        finish(engine, [to_engine_input(rendered, rendered.ids)]),
        finish(engine, [raw(Prompt("many", text, pictures, sounds))]),
    )
    assert ours == theirs
