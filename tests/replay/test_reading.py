"""Bundles that are read, and those that are refused before anything starts, with what is wrong with them."""

import io
import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from PIL import Image

from omni_rl.errors import ConfigError, MediaError, OmniRLError, PromptError
from omni_rl.jobs.records import keep_media
from omni_rl.media.types import MediaItem, Prompt, Sound, Video
from omni_rl.replay import reading
from omni_rl.replay.reading import read_bundle
from tests.replay.bundles import write

Change = Callable[[dict[str, Any]], object]
RNG = np.random.default_rng(5)
PIXELS = RNG.integers(0, 256, (40, 56, 3), np.uint8)


def _png(pixels: np.ndarray[Any, Any]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


PICTURE = _png(PIXELS)
DIGEST = blake3(PICTURE).hexdigest()


def record(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "pixel_values_flat", "rendered": "d1", "engine": "d1", "train": "d2"}
    image = {"modality": "image", "offset": 1, "length": 2, "content": DIGEST, "tensors": [tensor]}
    return {
        "sample": "p/0",
        "kind": "image",
        "prompt_ids": [5, 6, 6, 7],
        "ids": [8, 9],
        "rollout_logprobs": [-1.0, -2.0],
        "train_logprobs": [-1.5, None],
        "temperature": 0.7,
        "version_spans": [
            {"version": "run/1/3/aa", "start": 0, "end": 1, "mixed_state": False},
            {"version": "run/1/4/bb", "start": 1, "end": 2, "mixed_state": False},
        ],
        "train_version": "run/1/4/bb",
        "media": [image],
        "prompt_text": "What is <image>?",
        "token_texts": ["a", "b"],
    } | changes


def test_a_bundle_becomes_a_prompt_and_what_was_recorded(tmp_path: Path) -> None:
    found = read_bundle(write(tmp_path / "sample.zip", record(), {DIGEST: PICTURE}))
    assert (found.sample, found.step, found.prompt.kind) == ("p/0", "digits/1/12", "image")
    assert np.array_equal(np.asarray(found.prompt.images[0]), PIXELS)
    assert found.prompt_ids.tolist() == [5, 6, 6, 7]
    assert found.ids.tolist() == [8, 9]
    assert found.train_logprobs[0] == -1.5
    assert math.isnan(found.train_logprobs[1])
    assert found.sampled_under == ("run/1/3/aa", "run/1/4/bb")
    (item,) = found.media
    assert (item.modality, item.index, item.offset, dict(item.rendered)) == ("image", 0, 1, {"pixel_values_flat": "d1"})


@pytest.mark.parametrize(("height", "width"), [(64, 96), (63, 97)])
def test_sounds_and_videos_come_back_as_they_were_kept(tmp_path: Path, height: int, width: int) -> None:
    sound = Sound((0.5 * np.sin(np.arange(8000) / 9)).astype(np.float32), 16000)
    colours = RNG.integers(0, 256, (5, 1, 1, 3), np.uint8)
    video = Video(np.tile(colours, (1, height, width, 1)), 2.0, (*range(5),), 5)
    contents: dict[str, bytes] = {}

    def keep(data: bytes, kind: str) -> str:
        digest = blake3(data).hexdigest()
        contents[digest] = data
        return digest

    places = [
        MediaItem("video", 0, 0, 1, np.array([0]), {}, {}, ""),
        MediaItem("audio", 0, 1, 1, np.array([1]), {}, {}, ""),
    ]
    kept = keep_media(Prompt("p/0", "<video><so_embedding>", sounds=(sound,), videos=(video,)), keep)
    media = [
        {"modality": place.modality, "offset": place.offset, "length": 1, "content": digest, "tensors": None}
        for place, digest in zip(places, kept, strict=True)
    ]
    path = write(tmp_path / "sample.zip", record(media=media, prompt_text="<video><so_embedding>"), contents)
    prompt = read_bundle(path).prompt
    assert np.abs(prompt.sounds[0].samples - sound.samples).max() < 1e-4
    frames = prompt.videos[0].frames
    assert frames.shape == (5, height + height % 2, width + width % 2, 3)
    assert np.abs(frames[:, :height, :width].astype(int) - video.frames).mean() < 8


def _without(name: str) -> Change:
    return lambda changed: changed.pop(name)


def _item(**values: Any) -> Change:
    return lambda changed: changed["media"][0].update(values)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (_without("prompt_text"), ConfigError, "no prompt_text"),
        (_without("prompt_ids"), ConfigError, "no prompt_ids"),
        (_without("ids"), ConfigError, "no ids"),
        (_without("rollout_logprobs"), ConfigError, "rollout_logprobs"),
        (_item(content="0" * 64), ConfigError, r"media item 0 \(image\): media/0{64} is not in the bundle"),
        (_item(content=None), ConfigError, r"media item 0 \(image\): its bytes were not kept"),
        (_item(content="../../etc/passwd"), ConfigError, "no blake3 in hex"),
        (_item(modality="audio"), MediaError, "'p/0', audio 0: cannot decode"),
        (lambda changed: changed.update(prompt_text="What?"), PromptError, "0 <image>"),
        (lambda changed: changed.update(ids=[1, 2, 3]), ConfigError, "ids"),
        (lambda changed: changed.update(surprise=1), ConfigError, "surprise"),
    ],
)
def test_what_a_record_lacks_is_named(change: Change, error: type[OmniRLError], said: str, tmp_path: Path) -> None:
    changed = record()
    change(changed)
    path = write(tmp_path / "sample.zip", changed, {DIGEST: PICTURE})
    with pytest.raises(error, match=said):
        read_bundle(path)


def test_a_file_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_bundle(tmp_path / "nowhere.zip")
    path = tmp_path / "sample.zip"
    path.write_bytes(b"not one")
    with pytest.raises(ConfigError, match=r"sample\.zip: File is not a zip file"):
        read_bundle(path)
    for members, said in (({"other.json": "{}"}, r"no sample\.json"), ({"sample.json": "{"}, "is no sample")):
        with zipfile.ZipFile(path, "w") as file:
            for name, text in members.items():
                file.writestr(name, text)
        with pytest.raises(ConfigError, match=said):
            read_bundle(path)


def test_bytes_that_are_not_what_their_name_says_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "sample.zip", record(), {DIGEST: _png(255 - PIXELS)})
    with pytest.raises(ConfigError, match=r"media item 0 \(image\): .* other bytes than its name says"):
        read_bundle(path)


def test_nothing_is_unpacked_beyond_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "sample.zip", record(prompt_text="<image>" + " " * 100_000), {DIGEST: PICTURE})
    monkeypatch.setattr(reading, "MEDIA_BYTES", len(PICTURE) - 1)
    with pytest.raises(ConfigError, match=f"media/{DIGEST} has over {len(PICTURE) - 1} bytes"):
        read_bundle(path)
    monkeypatch.setattr(reading, "RECORD_BYTES", 50_000)
    with pytest.raises(ConfigError, match=r"sample\.json has over 50000 bytes"):
        read_bundle(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as file:
        file.writestr("sample.json", json.dumps(record()))
    with pytest.raises(ConfigError, match=r"sample\.json is compressed by method 12"):
        read_bundle(path)


def test_a_damaged_zip_gives_an_error_of_ours_or_the_same_bundle(tmp_path: Path) -> None:
    good = write(tmp_path / "sample.zip", record(), {DIGEST: PICTURE}).read_bytes()
    path = tmp_path / "damaged.zip"
    refused = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        data = bytearray(good)
        for at in rng.integers(0, len(data), 3):
            data[at] = rng.integers(256)
        path.write_bytes(data[: rng.integers(1, len(data))] if seed % 4 == 0 else data)
        try:
            assert read_bundle(path).ids.tolist() == [8, 9]
        except OmniRLError:
            refused += 1
    assert refused > 300
