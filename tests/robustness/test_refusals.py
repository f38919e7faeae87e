"""What is refused, by an error of ours that names the item: nothing is started to find it out."""

import io
import json
import shutil
import wave
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from omni_rl.config import load
from omni_rl.errors import CheckpointError, ConfigError, MediaError, OmniRLError, PromptError
from omni_rl.kinds import Modality
from omni_rl.media.prompts import plain
from omni_rl.media.slots import FeatureCounts
from omni_rl.media.sounds import read_sound
from omni_rl.media.types import MediaItem, Prompt, RenderedPrompt
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.rollout.settings import EngineSettings
from omni_rl.train.settings import TrainSettings

from .broken import BROKEN, Break
from .conftest import clip, cut_off, hiss, silence

THREE_HOURS = 3 * 3600


@pytest.mark.parametrize(
    ("prompt", "error", "words"),
    [
        (Prompt("p", "<image>", (cut_off(),)), MediaError, "image 0: .* damaged"),
        (Prompt("p", "<image>", (Image.new("RGB", (0, 5)),)), MediaError, "image 0: .* no pixels"),
        (Prompt("p", "<image>", (Image.new("La", (5, 5)),)), MediaError, "image 0: .* no colours"),
        (Prompt("p", "<so_embedding>", sounds=(hiss(0, 0),)), MediaError, "audio 0: .* empty"),
        (Prompt("p", "<so_embedding>", sounds=(hiss(0, 9, rate=2**31),)), MediaError, "audio 0: .* rate"),
        (Prompt("p", "<so_embedding>", sounds=(silence(THREE_HOURS, 16_000),)), MediaError, "audio 0: .* 10800.0 s"),
        (
            Prompt("p", "<so_embedding>", sounds=(silence(THREE_HOURS, 48_000, 6),)),
            MediaError,
            "10800.0 s; at most 600",
        ),
        (Prompt("p", "<video>", videos=(clip(0, 0, 8, 8),)), MediaError, "video 0: .* no frames"),
        (Prompt("p", "<image><image>", (Image.new("RGB", (5, 5)),)), PromptError, "2 <image> .* 1 image"),
    ],
    ids=[
        "cut off",
        "no pixels",
        "no colours",
        "no samples",
        "a rate that no file has",
        "3 hours",
        "3 hours of 5.1",
        "no frames",
        "a placeholder too many",
    ],
)
def test_bad_media_are_named_before_they_cross_to_an_engine(
    prompt: Prompt, error: type[OmniRLError], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        plain(prompt)
    assert "'p'" in str(caught.value)


def test_a_three_hour_file_is_given_up_while_it_is_decoded() -> None:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(1000)
        file.writeframes(bytes(THREE_HOURS * 1000))
    with pytest.raises(MediaError, match=r"at most 600 s") as caught:
        read_sound(buffer.getvalue())
    assert "10800" not in str(caught.value), "all of it was decoded first"


def test_making_plain_is_idempotent() -> None:
    picture = Image.fromarray(np.full((3, 2, 4), 128, np.uint8))
    prompt = Prompt("p", "<image><so_embedding><video>", (picture,), (hiss(1, 100, 2, 8_000),), (clip(2, 2, 4, 4),))
    once = plain(prompt)
    twice = plain(once)
    assert np.array_equal(np.asarray(once.images[0]), np.asarray(twice.images[0]))
    assert np.array_equal(once.sounds[0].samples, twice.sounds[0].samples)
    assert once.sounds[0].rate == twice.sounds[0].rate == 16_000
    assert np.array_equal(once.videos[0].frames, twice.videos[0].frames)


COUNTS = FeatureCounts(side=32, frames=2, halvings=3)


def _item(modality: Modality, slots: int, **tensors: torch.Tensor) -> MediaItem:
    """Its span begins at the prompt's second token and holds nothing but slots."""
    return MediaItem(modality, 0, 1, slots, 1 + np.arange(slots), tensors, {}, "hash")


def _image(slots: int, height: int = 64, width: int = 96) -> MediaItem:
    return _item("image", slots, pixel_values_flat=torch.zeros(3, height, width))


def _video(slots: int) -> MediaItem:
    return _item("video", slots, pixel_values_flat_video=torch.zeros(5, 3, 32, 64))


def _sound(slots: int) -> MediaItem:
    mask = torch.ones(2, 100, dtype=torch.bool)
    mask[1, 17:] = False
    return _item("audio", slots, input_audio_features=torch.zeros(2, 100, 80), feature_attention_mask=mask)


def _prompt(*items: MediaItem, tokens: int = 40) -> RenderedPrompt:
    return RenderedPrompt("p", "mixed", np.zeros(tokens, np.int64), items)


def test_slots_that_fit_pass() -> None:
    for item in (_image(6), _video(6), _sound(13 + 3)):
        COUNTS.check([_prompt(item)])


@pytest.mark.parametrize(
    ("item", "error", "words"),
    [
        (_image(5), PromptError, "image 0 has 5 slots in the prompt, its tensors make 6 features"),
        (_image(7), PromptError, "image 0 has 7 slots"),
        (_video(5), PromptError, "video 0 has 5 slots in the prompt, its tensors make 6"),
        (_sound(15), PromptError, "audio 0 has 15 slots in the prompt, its tensors make 16"),
        (_image(6, 64, 95), MediaError, "64 x 95 pixels; both must be multiples of 32"),
        (_item("image", 6), MediaError, "lacks pixel_values_flat"),
        (replace(_image(6), offset=38), PromptError, "spans 38 to 44 of 40 tokens"),
        (replace(_image(6), positions=np.arange(6)), PromptError, "outside of its span"),
        (replace(_image(6), positions=1 + np.arange(6)[::-1]), PromptError, "out of order"),
    ],
)
def test_slots_that_do_not_fit_are_named(item: MediaItem, error: type[OmniRLError], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        COUNTS.check([_prompt(_image(6)), _prompt(item)])
    assert "'p'" in str(caught.value)


def test_spans_that_overlap_are_refused() -> None:
    with pytest.raises(PromptError, match="apart"):
        COUNTS.check([_prompt(_image(6), _image(6))])


def test_sounds_for_a_model_without_a_sound_tower_are_refused() -> None:
    with pytest.raises(MediaError, match="no sound tower"):
        replace(COUNTS, halvings=None).check([_prompt(_sound(16))])


@pytest.mark.parametrize("item", [_image(6), _video(6)], ids=["image", "video"])
def test_pixels_in_another_dtype_than_the_engines_are_refused(item: MediaItem) -> None:
    replace(COUNTS, pixels=torch.float32).check([_prompt(item)])
    with pytest.raises(MediaError, match=r"0 was rendered in torch\.float32, the engine takes torch\.bfloat16"):
        replace(COUNTS, pixels=torch.bfloat16).check([_prompt(item)])


@pytest.mark.parametrize(
    "make",
    [
        lambda: EngineSettings(model=Path("m"), dtype="float8"),  # type: ignore[arg-type]
        lambda: TrainSettings(dtype="float8"),  # type: ignore[arg-type]
        lambda: load(None, {"demo.dtype": "float8"}),
        lambda: NemotronOmniForConditionalGeneration.from_pretrained(load().demo.model, dtype="float8"),
    ],
    ids=["engine", "trainer", "demo", "model"],
)
def test_an_unknown_dtype_is_named(make: Callable[[], Any]) -> None:
    with pytest.raises(ConfigError, match=r"dtype.*float8"):
        make()


@pytest.mark.parametrize("section", [None, "llm_config"])
def test_an_unknown_dtype_in_a_checkpoint_is_named(small_checkpoint: Path, tmp_path: Path, section: str | None) -> None:
    broken = shutil.copytree(small_checkpoint, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    (config if section is None else config[section])["dtype"] = "float8"
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"dtype of .*config.*float8"):
        NemotronOmniForConditionalGeneration.from_pretrained(broken)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_checkpoint_is_refused_by_the_trainers_model_and_its_tensors_listed(
    small_checkpoint: Path, tmp_path: Path, name: str
) -> None:
    broken: Break = BROKEN[name]
    with pytest.raises(CheckpointError) as caught:
        NemotronOmniForConditionalGeneration.from_pretrained(broken.make(small_checkpoint, tmp_path))
    assert all(word in str(caught.value) for word in broken.named)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_checkpoint_is_refused_before_vllm_starts(small_checkpoint: Path, tmp_path: Path, name: str) -> None:
    from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
    from omni_rl.models.nemotron_omni.whole import check_checkpoint

    broken = BROKEN[name].make(small_checkpoint, tmp_path)
    with pytest.raises(CheckpointError) as caught:
        check_checkpoint(broken, NemotronOmniConfig.from_pretrained(broken))
    assert all(word in str(caught.value) for word in BROKEN[name].named)


def test_a_whole_checkpoint_passes_with_derived_tensors_or_without(small_checkpoint: Path, tmp_path: Path) -> None:
    from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
    from omni_rl.models.nemotron_omni.whole import check_checkpoint

    config = NemotronOmniConfig.from_pretrained(small_checkpoint)
    check_checkpoint(small_checkpoint, config)
    copy = shutil.copytree(small_checkpoint, tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    weights["vision_model.radio_model.summary_idxs"] = torch.tensor([0])
    save_file(weights, copy / "model.safetensors")
    check_checkpoint(copy, config)


def test_padding_on_the_left_is_refused(small_checkpoint: Path) -> None:
    model = NemotronOmniForConditionalGeneration.from_pretrained(small_checkpoint)
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    with pytest.raises(PromptError, match="sample 1 is padded on the left"):
        model(input_ids=torch.full((2, 4), 100), attention_mask=mask)
