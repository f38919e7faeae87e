"""One rendering: ids, spans and tensors belong together, come out the same every time, and bad prompts are named."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from omni_rl.errors import MediaError, PromptError
from omni_rl.kinds import KINDS, Kind
from omni_rl.media.digests import tensor_digest
from omni_rl.media.engine_input import to_engine_input
from omni_rl.media.renderer import Renderer
from omni_rl.media.types import Prompt, RenderedPrompt, Sound, Video
from omni_rl.tasks.samples import demo_prompts

RawPrompt = Callable[[Prompt], dict[str, Any]]
IMAGE_TOKEN, SOUND_TOKEN = 18, 27


def grey(width: int, height: int, value: int = 90) -> Image.Image:
    return Image.new("RGB", (width, height), (value, value, value))


def noise(seconds: float, seed: int = 0) -> Sound:
    samples = np.random.default_rng(seed).normal(0, 0.1, int(16_000 * seconds))
    return Sound(samples.astype(np.float32), 16_000)


def video(frames: int) -> Video:
    pictures = np.random.default_rng(1).integers(0, 256, (frames, 48, 64, 3), dtype=np.uint8)
    return Video(pictures, 25.0, tuple(range(0, 10 * frames, 10)), 10 * frames)


def one(renderer: Renderer, prompt: Prompt) -> RenderedPrompt:
    (rendered,) = renderer.render([prompt])
    return rendered


def fingerprint(rendered: RenderedPrompt) -> Any:
    return rendered.ids.tolist(), [(item.offset, item.digests, item.content_hash) for item in rendered.items]


@pytest.mark.parametrize("kind", KINDS)
def test_spans_lie_on_the_placeholders_and_nowhere_else(renderer: Renderer, kind: Kind) -> None:
    for prompt, rendered in zip(demo_prompts(kind, 4, 0), renderer.render(demo_prompts(kind, 4, 0)), strict=True):
        assert (rendered.id, rendered.kind, rendered.answer) == (prompt.id, kind, prompt.answer)
        assert len(rendered.items) == len(prompt.images) + len(prompt.sounds) + len(prompt.videos)
        slots = []
        for item in rendered.items:
            token = SOUND_TOKEN if item.modality == "audio" else IMAGE_TOKEN
            assert (rendered.ids[item.positions] == token).all()
            assert item.offset <= item.positions.min()
            assert item.positions.max() < item.offset + item.length
            assert len(item.positions) == features(item.modality, item.tensors)
            slots += item.positions.tolist()
        everywhere = np.flatnonzero(np.isin(rendered.ids, (IMAGE_TOKEN, SOUND_TOKEN)))
        assert slots == everywhere.tolist()


def features(modality: str, tensors: dict[str, torch.Tensor]) -> int:
    """How many features the towers make of an item: one per 32 x 32 pixels, per pair of frames, per 8 mel frames."""
    if modality == "image":
        _, height, width = tensors["pixel_values_flat"].shape
        return height * width // 32**2
    if modality == "video":
        frames, _, height, width = tensors["pixel_values_flat_video"].shape
        return -(-frames // 2) * height * width // 32**2
    total = 0
    for length in tensors["feature_attention_mask"].sum(1).tolist():
        for _ in range(3):
            length = (length - 1) // 2 + 1
        total += length
    return total


def test_several_images_keep_their_order_and_shapes(renderer: Renderer) -> None:
    pictures = (grey(64, 64, 0), grey(200, 50, 128), grey(50, 120, 255))
    rendered = one(renderer, Prompt("shapes", "<image> then <image> and <image>", pictures))
    values = [item.tensors["pixel_values_flat"] for item in rendered.items]
    assert [item.index for item in rendered.items] == [0, 1, 2]
    assert len({value.shape for value in values}) == 3
    assert values[1].shape[2] > values[1].shape[1]
    assert values[2].shape[1] > values[2].shape[2]
    assert values[0].mean() < values[1].mean() < values[2].mean()
    for value, item in zip(values, rendered.items, strict=True):
        assert item.tensors["imgs_sizes"].tolist() == list(value.shape[1:])


def test_frame_times_stand_in_the_prompt_as_text(renderer: Renderer, front_end: Any) -> None:
    rendered = one(renderer, Prompt("clip", "See <video> now", videos=(video(5),)))
    text = front_end.renderer.get_tokenizer().decode(rendered.ids.tolist())
    assert "Frame 1 sampled at 0.00 seconds and frame 2 sampled at 0.40 seconds" in text
    assert "Frame 5 sampled at 1.60 seconds" in text
    (item,) = rendered.items
    assert item.tensors["frames_indices"].tolist() == [0, 10, 20, 30, 40]
    assert len(item.positions) < item.length


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_renders_the_same_again_and_in_any_company(renderer: Renderer, kind: Kind) -> None:
    prompts = demo_prompts(kind, 4, 7)
    together = [fingerprint(rendered) for rendered in renderer.render(prompts)]
    backwards = [fingerprint(rendered) for rendered in reversed(renderer.render(prompts[::-1]))]
    alone = [fingerprint(one(renderer, prompt)) for prompt in prompts]
    assert together == backwards == alone


def test_the_budget_that_images_share_does_not_depend_on_what_was_rendered_before(
    start_front_end: Callable[[int], Any],
) -> None:
    narrow = start_front_end(128)  # one large image takes 64 tokens of it, two have to share
    renderer = Renderer(narrow)
    large = [grey(1000, 1000, 10), grey(1000, 1000, 200)]
    pair = Prompt("pair", "<image><image>", tuple(large))
    before = one(renderer, pair)
    for number, picture in enumerate(large):
        assert len(one(renderer, Prompt(f"single-{number}", "<image>", (picture,))).items[0].positions) == 64
    assert fingerprint(one(renderer, pair)) == fingerprint(before)
    assert sum(len(item.positions) for item in before.items) < 2 * 64


def test_digests_are_of_the_tensors_and_one_pixel_changes_them(renderer: Renderer) -> None:
    picture = grey(96, 64)
    base = one(renderer, Prompt("base", "<image>", (picture,))).items[0]
    assert base.digests == {name: tensor_digest(tensor) for name, tensor in base.tensors.items()}
    dotted = picture.copy()
    dotted.putpixel((5, 5), (91, 90, 90))
    changed = one(renderer, Prompt("dotted", "<image>", (dotted,))).items[0]
    assert changed.digests["pixel_values_flat"] != base.digests["pixel_values_flat"]
    assert changed.digests["imgs_sizes"] == base.digests["imgs_sizes"]
    assert changed.content_hash != base.content_hash


def test_tensors_own_their_storage(renderer: Renderer) -> None:
    rendered = one(
        renderer, Prompt("two", "<video><so_embedding><so_embedding>", (), (noise(1), noise(2)), (video(4),))
    )
    for item in rendered.items:
        for tensor in item.tensors.values():
            assert tensor.is_contiguous()
            assert tensor.untyped_storage().nbytes() == tensor.nbytes


@pytest.mark.parametrize("kind", KINDS)
def test_the_engines_input_is_vllms_own(renderer: Renderer, front_end: Any, raw: RawPrompt, kind: Kind) -> None:
    from vllm.multimodal.inputs import batched_tensors_equal

    for prompt in demo_prompts(kind, 4, 2):
        front_end.renderer.clear_mm_cache()  # with it, vLLM leaves out tensors that it believes the engine to have
        rendered = pickle.loads(pickle.dumps(one(renderer, prompt)))
        ours = to_engine_input(rendered, rendered.ids)
        (theirs,) = front_end.renderer.render_cmpl([raw(prompt)])
        assert ours["prompt_token_ids"] == theirs["prompt_token_ids"]
        assert ours["type"] == theirs["type"]
        if kind == "text":
            continue
        assert dict(ours["mm_placeholders"]) == dict(theirs["mm_placeholders"])
        got, expected = ours["mm_kwargs"].get_data(), theirs["mm_kwargs"].get_data()
        assert got.keys() == expected.keys()
        assert batched_tensors_equal(got, expected)
        for modality, items in theirs["mm_kwargs"].items():
            for mine, vllms in zip(ours["mm_kwargs"][modality], items, strict=True):
                assert dict(mine) == dict(vllms)
                for name, element in vllms.items():
                    assert mine[name].field.keep_on_cpu == element.field.keep_on_cpu, name


def odd_pictures() -> list[Image.Image]:
    rgba = np.random.default_rng(3).integers(0, 256, (40, 90, 4), dtype=np.uint8)
    colour = Image.fromarray(rgba[..., :3])
    turned = colour.copy()
    turned.getexif()[0x0112] = 8
    indexed = colour.convert("P")
    indexed.info["transparency"] = 3
    return [
        Image.fromarray(rgba),
        Image.fromarray(rgba).convert("LA"),
        colour.convert("L"),
        colour.convert("1"),
        colour.convert("CMYK"),
        indexed,
        turned,
    ]


@pytest.mark.parametrize("picture", odd_pictures(), ids=("RGBA", "LA", "L", "1", "CMYK", "P", "turned"))
def test_pictures_of_every_mode_become_what_vllm_makes_of_them(
    renderer: Renderer, front_end: Any, raw: RawPrompt, picture: Image.Image
) -> None:
    prompt = Prompt("odd", "<image>", (picture,))
    front_end.renderer.clear_mm_cache()
    (theirs,) = front_end.renderer.render_cmpl([raw(prompt)])
    (item,) = one(renderer, prompt).items
    assert torch.equal(item.tensors["pixel_values_flat"], theirs["mm_kwargs"]["image"][0]["pixel_values_flat"].data)


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    samples=st.integers(1, 40_000),
    frames=st.integers(1, 9),
    order=st.permutations(["<image>", "<so_embedding>", "<video>"]),
)
def test_every_item_has_as_many_slots_as_features(
    renderer: Renderer, width: int, height: int, samples: int, frames: int, order: list[str]
) -> None:
    assume(max(width, height) < 100 * min(width, height))
    media = (grey(width, height),), (noise(samples / 16_000),), (video(frames),)
    rendered = one(renderer, Prompt("any", "look".join(order), *media))
    names = {"image": "<image>", "audio": "<so_embedding>", "video": "<video>"}
    assert [names[item.modality] for item in rendered.items] == list(order)
    for item in rendered.items:
        assert len(item.positions) == features(item.modality, item.tensors)


def test_an_answer_follows_the_prompt_and_a_foreign_prompt_is_refused(renderer: Renderer) -> None:
    rendered = one(renderer, Prompt("p", "<image>what", (grey(64, 64),)))
    ids = rendered.ids.tolist()
    assert to_engine_input(rendered, [*ids, IMAGE_TOKEN, 5])["prompt_token_ids"] == [*ids, IMAGE_TOKEN, 5]
    for wrong in (ids[:-1], [*ids[:-1], 5], []):
        with pytest.raises(PromptError, match="'p'"):
            to_engine_input(rendered, wrong)


@pytest.mark.parametrize(
    ("prompt", "error", "words"),
    [
        (Prompt("p", "<image><image>", (grey(9, 9),)), PromptError, "2 <image> .* 1 image"),
        (Prompt("p", "none", (grey(9, 9),)), PromptError, "0 <image> .* 1 image"),
        (Prompt("p", "<so_embedding>"), PromptError, "1 <so_embedding> .* 0 audio"),
        (Prompt("p", "<image>", videos=(video(2),)), PromptError, "1 <image> .* 0 image"),
        (Prompt("p", "<image>" * 4, (grey(9, 9),) * 4), PromptError, "at most 3"),
        (Prompt("p", "<image><image>", (grey(9, 9), grey(20_000, 1))), MediaError, "image 1: 20000 x 1 .* elongated"),
        (Prompt("p", "<so_embedding>", sounds=(noise(0),)), MediaError, "audio 0: .* empty"),
        (Prompt("p", "<so_embedding>", sounds=(noise(601),)), MediaError, "audio 0: .* 601.0 s; at most 600 s"),
        (Prompt("p", "<so_embedding>", sounds=(noise(100),)), MediaError, "audio 0: .* tokens; the context holds 1023"),
        (Prompt("p", "<video>", videos=(replace(video(2), indices=(0,)),)), MediaError, "2 frames but 1 frame numbers"),
        (Prompt("p", "<video>", videos=(replace(video(2), total_frames=2),)), MediaError, "video 0: .* do not lie"),
        (Prompt("p", "<video>", videos=(replace(video(2), fps=0.0),)), MediaError, "frame rate"),
        (Prompt("p", "<video>", videos=(replace(video(2), frames=video(2).frames[:0]),)), MediaError, "no frames"),
        (Prompt("p", "<video>", videos=(replace(video(2), frames=video(2).frames[..., 0]),)), MediaError, "uint8"),
        (Prompt("p", "word " * 1100), PromptError, "1023|context length"),
        (Prompt("p", "<video><video>", videos=(video(40), video(40))), PromptError, "at most 1023"),
        (Prompt("p", ""), PromptError, "empty"),
        (
            Prompt("p", "<video><video>", videos=(video(2), replace(video(2), frames=video(2).frames[:, :, :20]))),
            MediaError,
            "vLLM's processor refused its media",
        ),
    ],
)
def test_bad_prompts_are_named_and_the_renderer_lives_on(
    renderer: Renderer, prompt: Prompt, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        renderer.render([prompt])
    assert "'p'" in str(caught.value)
    assert len(one(renderer, Prompt("after", "<image>", (grey(64, 64),))).items) == 1


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt("dot", "<image>", (grey(1, 1),)),
        Prompt("strip", "<image>", (grey(1, 300),)),
        Prompt("click", "<so_embedding>", sounds=(noise(1 / 16_000),)),
        Prompt("frame", "<video>", videos=(video(1),)),
        Prompt("stereo", "<so_embedding>", sounds=(Sound(np.ones((2, 48_000), np.float32), 48_000),)),
        Prompt("depth", "<image>", (Image.fromarray(np.full((9, 9), 40_000, np.uint16)),)),
    ],
    ids=lambda prompt: str(prompt.id),
)
def test_odd_but_good_media_render(renderer: Renderer, prompt: Prompt) -> None:
    (item,) = one(renderer, prompt).items
    assert len(item.positions) == features(item.modality, item.tensors)
    assert all(torch.isfinite(tensor).all() for tensor in item.tensors.values())
