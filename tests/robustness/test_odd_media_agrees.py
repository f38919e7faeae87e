"""Odd but good media, on real vLLM and the training copy: accepted, and the same function on both sides."""

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from omni_rl.media.images import load_image
from omni_rl.media.types import Prompt, RenderedPrompt
from omni_rl.rollout.types import Rollout

from .conftest import BothSides, breaches, clip, hiss, noise

pytestmark = pytest.mark.slow

IMAGE_TOKEN, SOUND_TOKEN, VIDEO_TOKEN = 18, 27, 30
ORIENTATION = 0x0112


def _picture(source: Any) -> Prompt:
    return Prompt("picture", "look <image> now", images=(load_image(source),))


def _turned(orientation: int, format: str) -> bytes:  # noqa: A002
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    buffer = io.BytesIO()
    Image.fromarray(noise(orientation, 40, 100, 3)).save(buffer, format, exif=exif)
    return buffer.getvalue()


def _palette(transparent: bool) -> Image.Image:
    indexed = Image.fromarray(noise(5, 50, 70, 3)).quantize(16)
    if transparent:
        indexed.info["transparency"] = 3
    return indexed


PICTURES: dict[str, Any] = {
    "1 x 1": noise(0, 1, 1, 3),
    "1 x 90": noise(0, 1, 90, 3),
    "3 x 2": noise(0, 3, 2, 3),
    "odd size": noise(1, 77, 131, 3),
    "large": noise(2, 900, 700, 3),
    "grey": noise(3, 60, 80),
    "RGBA": noise(4, 60, 80, 4),
    "grey and alpha": Image.fromarray(noise(4, 60, 80, 4)).convert("LA"),
    "palette": _palette(transparent=False),
    "palette, one colour transparent": _palette(transparent=True),
    "16 bits": np.random.default_rng(6).integers(0, 65536, (60, 80), dtype=np.uint16),
    "bool": noise(7, 60, 80) > 127,
    "one bit": Image.fromarray(noise(7, 60, 80) > 127),
    "CMYK": Image.fromarray(noise(8, 60, 80, 4), "CMYK"),
    "all black": np.zeros((64, 64, 3), np.uint8),
}


@pytest.mark.parametrize("source", PICTURES.values(), ids=PICTURES.keys())
def test_pictures_of_any_size_and_mode(both: BothSides, source: Any) -> None:
    both.agree([_picture(source)])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_turned_picture_is_what_vllm_reads_from_the_same_bytes(
    both: BothSides,
    format: str,  # noqa: A002
    orientation: int,
) -> None:
    from vllm.multimodal.media.image import ImageMediaIO

    data = _turned(orientation, format)
    (rendered,) = both.renderer.render([_picture(data)])
    read = {"prompt": "look <image> now", "multi_modal_data": {"image": ImageMediaIO().load_bytes(data).media}}
    (theirs,) = both.engine.llm_engine.renderer.render_cmpl([read])
    (item,) = rendered.items
    assert torch.equal(item.tensors["pixel_values_flat"], theirs["mm_kwargs"]["image"][0]["pixel_values_flat"].data)
    turned = load_image(data)
    assert turned.size == ((40, 100) if orientation >= 5 else (100, 40))
    both.agree([_picture(data)])


@pytest.mark.parametrize("rate", [4_000, 8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("channels", [1, 2, 6], ids=["mono", "stereo", "5.1"])
def test_sounds_of_any_rate_and_layout(both: BothSides, channels: int, rate: int) -> None:
    sound = hiss(rate + channels, int(0.9 * rate), channels, rate)
    both.agree([Prompt("sound", "hear <so_embedding> now", sounds=(sound,))])


@pytest.mark.parametrize("samples", [1, 2, 159, 160, 161, 1_279, 1_280, 1_281, 15_999, 480_001])
def test_sounds_of_any_length(both: BothSides, samples: int) -> None:
    """Around one mel frame, one feature, and one clip of 30 s."""
    both.agree([Prompt("sound", "hear <so_embedding> now", sounds=(hiss(samples, samples),))])


@pytest.mark.parametrize("level", [0.0, 1e-12, 1.0, 32768.0])
def test_sounds_of_any_loudness(both: BothSides, level: float) -> None:
    sound = hiss(1, 12_000)
    both.agree([Prompt("sound", "hear <so_embedding>", sounds=(replace(sound, samples=sound.samples * level),))])


@pytest.mark.parametrize("frames", [1, 2, 3, 7])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (33, 65), (97, 41), (64, 300), (1, 600), (3_000, 2)])
def test_videos_of_one_frame_and_odd_sizes(both: BothSides, frames: int, height: int, width: int) -> None:
    both.agree([Prompt("video", "see <video> now", videos=(clip(frames, frames, height, width),))])


def test_media_of_different_sizes_share_a_batch(both: BothSides) -> None:
    """Left to itself, vLLM pads the videos and the sounds of a batch to the largest one, without a word."""
    sizes = ((64, 128), (128, 64), (96, 96), (33, 70))
    both.agree(
        [
            *(Prompt(f"video {h}", "<video>", videos=(clip(h, 4, h, w),)) for h, w in sizes),
            *(Prompt(f"picture {h}", "<image>", images=(load_image(noise(h, h, w, 3)),)) for h, w in sizes),
            *(Prompt(f"sound {h}", "<so_embedding>", sounds=(hiss(h, 200 * h),)) for h, _ in sizes),
        ]
    )


def test_everything_odd_in_one_prompt(both: BothSides) -> None:
    both.agree(
        [
            Prompt(
                "all",
                "<video><image> and <so_embedding><image><video><so_embedding>",
                images=(load_image(PICTURES["1 x 1"]), load_image(PICTURES["RGBA"])),
                sounds=(hiss(1, 1), hiss(2, 44_100, 2, 44_100)),
                videos=(clip(1, 1, 31, 57), clip(2, 3, 31, 57)),
            )
        ]
    )


def _answered(prompt: RenderedPrompt, answer: Sequence[int]) -> Rollout:
    """An answer that nobody sampled; what it would have been sampled with does not matter to rescoring."""
    ids = np.array(answer, np.int64)
    return Rollout(prompt, ids, np.zeros(len(ids)), 1.0, (), ({},) * len(prompt.items), None, "length")


@pytest.mark.parametrize(
    "answer",
    [
        [IMAGE_TOKEN],
        [SOUND_TOKEN, 100],
        [VIDEO_TOKEN] * 3,
        [19, IMAGE_TOKEN, IMAGE_TOKEN, 20, 100, SOUND_TOKEN, VIDEO_TOKEN, IMAGE_TOKEN, 200],
    ],
    ids=["image", "sound", "video", "all of them, as a prompt would have them"],
)
def test_placeholder_ids_that_the_policy_sampled_are_ordinary_tokens(both: BothSides, answer: list[int]) -> None:
    prompts = [
        Prompt("text", "say something"),
        Prompt("picture", "look <image>", images=(load_image(noise(1, 70, 90, 3)),)),
        Prompt("sound", "<so_embedding>", sounds=(hiss(2, 9_000),)),
        Prompt("video", "<video>", videos=(clip(3, 3, 64, 64),)),
        Prompt(
            "mixed",
            "<image><so_embedding><video>",
            (load_image(noise(4, 64, 64, 3)),),
            (hiss(5, 9_000),),
            (clip(6, 2, 32, 32),),
        ),
    ]
    rollouts = [_answered(prompt, answer) for prompt in both.renderer.render(prompts)]
    for record in both.prefill_records(rollouts):
        assert breaches([record]) == [], record.sample
