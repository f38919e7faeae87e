"""A posted record as the search sees it: what was posted is evidence, what was not is left open."""

from typing import Any

import numpy as np
import pytest

from omni_rl.bridge.answers import answers_of, same_as_now
from omni_rl.bridge.posted import of_records
from omni_rl.consistency.actions import Cause
from omni_rl.consistency.attribution.search import Experiments, attribute
from omni_rl.consistency.bands import NOISE
from omni_rl.consistency.evidence import Check, Finding
from omni_rl.ledger.records import StepRecords
from omni_rl.media.types import MediaItem, RenderedPrompt
from omni_rl.rollout.types import Rollout
from omni_rl.train.recent import RecentAnswers, size_of

LOGPROBS = [-1.0, -2.0, -0.5]
VERSION = "run/1/3/0123456789abcdef"
RECORD: dict[str, Any] = {
    "sample": "p7/0",
    "prompt_ids": [5, 6, 7, 8],
    "ids": [1, 2, 3],
    "rollout_logprobs": LOGPROBS,
    "train_logprobs": np.array(LOGPROBS) - 0.4,
    "temperature": 0.7,
    "version_spans": [{"version": VERSION, "start": 0, "end": 3, "mixed_state": False}],
    "train_version": VERSION,
}
TENSOR = {"name": "pixel_values_flat", "rendered": "d1", "engine": "d1", "train": "d2"}
IMAGE = {
    **RECORD,
    "kind": "image",
    "prompt_text": "see <image>",
    "media": [{"modality": "image", "offset": 1, "length": 2, "content": "0" * 64, "tensors": [TENSOR]}],
}


def row_of(record: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = StepRecords.of([record]).table.to_pylist()[0]
    return row


def nothing(names: object) -> list[Rollout]:
    return []


def test_digests_of_a_record_are_evidence() -> None:
    case = of_records([StepRecords.of([IMAGE])], ["p7/0"], "float32").case
    assert case.temperature == 0.7
    found = attribute(case, Experiments(), NOISE["float32"], seconds=10)
    assert found.cause is Cause.MEDIA_MISMATCH
    assert "image 0 of sample p7/0: the trainer got another" in found.sentence


def test_what_the_seal_found_is_not_looked_for_again() -> None:
    known = [Finding(Check.TOKEN_SHIFT, "explains", "shifted", Cause.TOKEN_SHIFT)]
    case = of_records([StepRecords.of([IMAGE])], ["p7/0"], "float32", known).case
    assert case.known == known


def test_a_bare_record_proves_nothing() -> None:
    bare = {"sample": "a", "rollout_logprobs": LOGPROBS, "train_logprobs": [-1.0, -2.5, -0.1]}
    case = of_records([StepRecords.of([bare])], ["a"], "float32").case
    assert attribute(case, Experiments(), NOISE["float32"], seconds=10).cause is Cause.UNKNOWN
    assert answers_of([row_of(bare)], ["a"], nothing) == {}
    assert answers_of([row_of({**RECORD, "temperature": 0.0})], ["a"], nothing) == {}


def test_tokens_that_do_not_count_are_in_no_comparison() -> None:
    masked = {**RECORD, "train_logprobs": [-1.0, -90.0, -0.5], "loss_mask": [True, False, True]}
    case = of_records([StepRecords.of([masked])], ["p7/0"], "float32").case
    (record,) = case.records
    assert record.train_logprobs.tolist() == record.rollout_logprobs.tolist() == [-1.0, -0.5]
    assert case.cut({"p7/0": np.array([1.0, 2.0, 3.0]), "other": np.array([4.0])}) == {
        "p7/0": pytest.approx([1.0, 3.0]),
        "other": pytest.approx([4.0]),
    }
    assert case.cut({"p7/0": np.array([1.0, 2.0])})["p7/0"].tolist() == [1.0]


def test_an_answer_to_text_is_made_again_from_its_ids() -> None:
    (answer,) = answers_of([row_of(RECORD)], ["p7/0 of rank 1"], nothing).values()
    assert (answer.prompt.id, answer.prompt.ids.tolist(), answer.ids.tolist()) == (
        "p7/0 of rank 1",
        [5, 6, 7, 8],
        [1, 2, 3],
    )
    assert (answer.temperature, answer.logprobs.tolist()) == (0.7, LOGPROBS)
    assert answer.version_spans[0].version == VERSION


@pytest.mark.parametrize(
    ("digest", "ids", "again"),
    [("d1", [5, 6, 7, 8], True), ("d9", [5, 6, 7, 8], False), ("d1", [5, 6, 7, 9], False)],
)
def test_an_answer_that_the_trainer_has_is_taken_if_it_is_the_steps(digest: str, ids: list[int], again: bool) -> None:
    item = MediaItem("image", 0, 1, 2, np.array([1, 2]), {}, {"pixel_values_flat": digest}, "h")
    prompt = RenderedPrompt("p7/0", "image", np.array(ids), (item,))
    scored = Rollout(prompt, np.array([9]), np.zeros(1), 1.0, (), (item.digests,), None, "stop")
    found = answers_of([row_of(IMAGE)], ["p7/0 of rank 1"], lambda names: [scored])
    assert list(found) == (["p7/0 of rank 1"] if again else [])
    if again:
        answer = found["p7/0 of rank 1"]
        assert (answer.prompt.items, answer.ids.tolist(), answer.temperature) == ((item,), [1, 2, 3], 0.7)


def test_the_trainer_keeps_the_newest_answers_of_a_few_bytes() -> None:
    def answer(name: str) -> Rollout:
        return Rollout(
            RenderedPrompt(name, "text", np.zeros(8, np.int64)),
            np.zeros(1, np.int64),
            np.zeros(1),
            1.0,
            (),
            (),
            None,
            "",
        )

    recent = RecentAnswers(3 * size_of(answer("a")))
    recent.put([answer(name) for name in "abc"])
    recent.put([answer("b"), answer("d")])
    assert [found.prompt.id for found in recent.of("abcd")] == ["b", "c", "d"]
    recent = RecentAnswers(calls=2)
    for names in ("abc", "b", "d"):
        recent.put([answer(name) for name in names])
    assert [found.prompt.id for found in recent.of("abcd")] == ["b", "d"]


def test_a_step_is_computed_again_only_with_its_own_weights() -> None:
    row = row_of(RECORD)
    assert same_as_now(row, VERSION, "other/2/0/0123456789abcdef")  # the same weights under another name
    assert not same_as_now(row, "run/1/4/fedcba9876543210", VERSION)
    assert not same_as_now(row, VERSION, "run/1/4/fedcba9876543210")
    assert not same_as_now({**row, "train_version": "step-7"}, VERSION, VERSION)
    assert not same_as_now({**row, "version_spans": None}, VERSION, VERSION)
