"""Bundles of version 0.1.0 are read as they were meant; tests/replay/test_live.py replays one."""

import json
import zipfile
from typing import Any

import numpy as np
import pytest

from omni_rl.replay.reading import Bundle, read_bundle
from tests.pinned.pinned_files import DATA


def _posted(name: str) -> dict[str, Any]:
    """A bundle's sample, read as plain JSON."""
    with zipfile.ZipFile(DATA / name) as file:
        found: dict[str, Any] = json.loads(file.read("sample.json"))
    return found


@pytest.mark.parametrize("name", ["text.zip", "mixed.zip"])
def test_a_bundle_has_the_tokens_and_logprobs_that_were_posted(name: str) -> None:
    posted, bundle = _posted(name), read_bundle(DATA / name)
    record = posted["record"]
    assert bundle.sample == record["sample"]
    assert bundle.step == f"{posted['run']}/{posted['attempt']}/{posted['step']}"
    assert bundle.prompt.text == record["prompt_text"]
    assert bundle.prompt.kind == record["kind"] == posted["kind"]
    np.testing.assert_array_equal(bundle.prompt_ids, record["prompt_ids"])
    np.testing.assert_array_equal(bundle.ids, record["ids"])
    np.testing.assert_array_equal(bundle.rollout_logprobs, record["rollout_logprobs"])
    np.testing.assert_array_equal(bundle.train_logprobs, record["train_logprobs"])
    assert list(bundle.texts) == record["token_texts"]
    assert bundle.temperature == 1.0
    assert bundle.sampled_under == (record["version_spans"][0]["version"],)
    assert bundle.scored_with == record["train_version"]


def test_a_bundles_media_are_in_their_places() -> None:
    bundle = read_bundle(DATA / "mixed.zip")
    posted = _posted("mixed.zip")["record"]["media"]
    assert [item.modality for item in bundle.media] == ["image", "video", "audio"]
    for item, entry in zip(bundle.media, posted, strict=True):
        assert (item.offset, item.length) == (entry["offset"], entry["length"])
        assert item.rendered == {tensor["name"]: tensor["rendered"] for tensor in entry["tensors"]}
    _sizes(bundle)


def _sizes(bundle: Bundle) -> None:
    """Pixels, frames and samples as they were decoded when it was made."""
    (image,), (video,), (sound,) = bundle.prompt.images, bundle.prompt.videos, bundle.prompt.sounds
    assert image.size == (96, 64)
    assert (video.frames.shape, video.indices) == ((4, 72, 128, 3), (0, 1, 2, 3))
    assert (len(sound.samples), sound.rate) == (20460, 16000)
