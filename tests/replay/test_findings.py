"""What is made of a record and of what was rendered and scored, by hand; and how it is told."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydantic_core
import pytest
from tokenizers import Tokenizer

from omni_rl.consistency.localisation import ModuleDifference
from omni_rl.errors import PromptError
from omni_rl.kinds import Modality
from omni_rl.media.types import MediaItem, Prompt, RenderedPrompt, Video
from omni_rl.replay import comparing
from omni_rl.replay.findings import Replay, Sides, WeightsFound
from omni_rl.replay.reading import Bundle, RecordedItem
from omni_rl.replay.report import lines
from omni_rl.replay.time_stamps import timed

CHECKPOINT = "0123456789abcdef" * 4
HERE = f"run/1/3/{CHECKPOINT[:16]}"


def bundle(**changes: Any) -> Bundle:
    found = Bundle(
        sample="p/0",
        step="digits/1/12",
        prompt=Prompt("p/0", "text"),
        prompt_ids=np.array([5, 6, 6, 7]),
        media=(),
        ids=np.array([8, 9]),
        texts=("a", "b"),
        temperature=1.0,
        rollout_logprobs=np.array([-1.0, -2.0]),
        train_logprobs=np.array([-1.0, -2.5]),
        sampled_under=(HERE,),
        scored_with=HERE,
    )
    return replace(found, **changes)


def rendered(ids: list[int], modality: Modality = "image", **digests: str) -> RenderedPrompt:
    item = MediaItem(modality, 0, 1, 2, np.array([1, 2]), {}, digests, "")
    return RenderedPrompt("p/0", modality, np.array(ids), (item,))


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([5, 6, 6, 8], "4 are rendered now; they first differ at 3, in the text: recorded 7, now 8"),
        ([5, 6, 9, 7], "at 2, in image 0: recorded 6, now 9"),
        ([5, 6, 6], "4 ids were recorded, 3 are rendered now; they first differ at 3, .* recorded 7, now nothing"),
    ],
)
def test_the_first_id_that_is_other_is_named(ids: list[int], said: str) -> None:
    with pytest.raises(PromptError, match=said):
        comparing.require_recorded_ids(rendered(ids), bundle())
    comparing.require_recorded_ids(rendered([5, 6, 6, 7]), bundle())


def test_a_digest_that_differs_is_a_fault_of_a_picture_only() -> None:
    then = bundle(media=(RecordedItem("image", 0, 1, 2, {"pixels": "d1", "size": "d2", "unknown": None}),))
    (image,) = comparing.items(rendered([], pixels="d1", size="d3", unknown="d4"), then)
    assert {tensor.name: tensor.equal for tensor in image.tensors} == {"pixels": True, "size": False, "unknown": None}
    assert "a PNG loses nothing" in image.note
    sound = bundle(media=(RecordedItem("audio", 0, 1, 2, {"pixels": "d1"}),))
    assert "no fault" in comparing.items(rendered([], "audio", pixels="d2"), sound)[0].note
    assert comparing.items(rendered([], "audio", pixels="d1"), sound)[0].note == ""


@pytest.mark.parametrize(
    ("versions", "equal"),
    [((HERE,), True), ((HERE, "run/1/4/ffff"), False), (("step 12",), None), ((), None), (("", HERE), True)],
)
def test_weights_are_compared_where_the_record_names_a_digest(versions: tuple[str, ...], equal: bool | None) -> None:
    assert comparing.weights(bundle(sampled_under=versions, scored_with=""), CHECKPOINT).equal is equal


def test_frame_numbers_come_from_the_recorded_time_stamps(small_checkpoint: Path) -> None:
    tokenizer = Tokenizer.from_file(str(small_checkpoint / "tokenizer.json"))
    text = "Frame 1 sampled at 0.00 seconds and frame 2 sampled at 1.37 seconds: "
    ids = np.array([5, *tokenizer.encode(text, add_special_tokens=False).ids, 6])
    video = Video(np.zeros((2, 32, 32, 3), np.uint8), 1.0, (0, 1), 2)
    item = RecordedItem("video", 0, 1, len(ids) - 2, {})
    found = bundle(prompt=Prompt("p/0", "<video>", videos=(video,)), prompt_ids=ids, media=(item,))
    (read,) = timed(found, small_checkpoint).videos
    assert (read.fps, read.indices, read.total_frames) == (100.0, (0, 137), 138)
    (unread,) = timed(replace(found, prompt_ids=ids[::-1].copy()), small_checkpoint).videos
    assert unread is video


def played(**changes: Any) -> Replay:
    modules = [ModuleDifference("embeddings", 1e-9, 0, 1e-4), ModuleDifference("layers.0.mixer", 0.5, 7, 1e-4)]
    found = Replay(
        sample="p/0",
        step="digits/1/12",
        kind="text",
        dtype="float32",
        weights=WeightsFound(CHECKPOINT, (HERE,), True),
        prompt_tokens=4,
        media=(),
        ids=(8, 9),
        texts=("a", "b"),
        temperature=0.7,
        recorded=Sides.of(np.array([-1.0, -2.0]), np.array([-1.0, -2.5])),
        now=Sides.of(np.array([-1.0, -2.0]), np.array([-1.0, np.nan])),
        agree=False,
        reason="text: logprob_abs_diff_mean nan is over 0.0005 (pause)",
        first_outside=modules[1],
        modules=modules,
    )
    return replace(found, **changes)


def test_the_report_ends_with_the_verdict_and_what_explains_it() -> None:
    found = list(lines(played()))
    assert found[-1].startswith("disagree in float32: text: logprob_abs_diff_mean nan")
    assert "first outside its band: layers.0.mixer" in found[-2]
    assert "row 7; 1 of 2 are" in found[-2]
    assert "mean |d| 2.50e-01, max 5.00e-01  (at temperature 0.7; now is at 1)" in found[-4]
    healthy = played(agree=True, reason="fine", first_outside=None, modules=played().modules[:1])
    assert list(lines(healthy))[-2:] == [
        "modules    all 1 within their bands; the widest is embeddings, off by 1.00e-09 of its norm (band 1e-04)",
        "agree in float32: fine",
    ]


def test_other_weights_are_told_in_a_line() -> None:
    (line,) = (
        line for line in lines(played(weights=WeightsFound(CHECKPOINT, ("run/1/4/ff",), False))) if "OTHER" in line
    )
    assert (
        line
        == "weights    OTHERS than recorded: this checkpoint is 0123456789ab in float32, the record names run/1/4/ff"
    )


def test_no_control_character_of_a_bundle_reaches_the_terminal() -> None:
    told = lines(
        played(sample="\x1b[2Jp", texts=("\x1b]0;x\x07", "\n"), weights=WeightsFound(CHECKPOINT, ("\x1b",), False))
    )
    assert all(line.isprintable() for line in told)


def test_json_has_no_nan() -> None:
    found = json.loads(pydantic_core.to_json(played(), inf_nan_mode="null"))
    assert found["now"]["train"] == [-1.0, None]
    assert found["first_outside"]["module"] == "layers.0.mixer"
