"""What the records state of both sides: versions, media, prompts and dtypes, and when that is the cause."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.evidence import TensorSeen
from omni_rl.consistency.posted.proofs import dtypes, media, prompt, versions
from omni_rl.consistency.posted.step import PostedStep, Proofs, Spans

NOISE = 0.125


def step(sizes: Sequence[float], proofs: Proofs, tokens: int = 4) -> PostedStep:
    """An answer of `tokens` tokens for each abs d."""
    d = np.repeat(np.array(sizes, np.float64), tokens)
    return PostedStep(
        [f"a{n}" for n in range(len(sizes))],
        ["text"] * len(sizes),
        np.arange(len(sizes) + 1) * tokens,
        np.full(len(d), -16.0),
        d - 16.0,
        np.ones(len(d), np.bool_),
        np.ones(len(sizes)),
        proofs=proofs,
    )


def sampled(*spans: tuple[int, int, int, str]) -> Spans:
    """Spans of an answer's tokens, from the first to before the last, by a version."""
    answers, first, last = (np.array([span[at] for span in spans], np.int64) for at in range(3))
    return Spans(answers, first, last, [span[3] for span in spans])


def whole(*of: str) -> Spans:
    """Answers that one version each sampled."""
    return sampled(*((n, 0, 4, version) for n, version in enumerate(of)))


def prompts(*apart: int, count: int = 4) -> Proofs:
    return Proofs(prompts=[("a", "b" if n in apart else "a") for n in range(count)])


@pytest.mark.parametrize(
    ("sizes", "result"),
    [
        ([0.25, 0.5, 0.25, 0.25], "suspicious"),  # twice as far as the others
        ([0.25, 0.5625, 0.25, 0.25], "explains"),
        ([0.0, 0.125, 0.0, 0.0], "suspicious"),  # as far as noise
        ([0.0, 0.1875, 0.0, 0.0], "explains"),
        ([0.03125, 0.09375, 0.03125, 0.03125], "explains"),
        ([0.0, 0.0, 0.0, 0.0], "suspicious"),
    ],
)
def test_what_names_the_answers_that_are_off_is_the_cause(sizes: list[float], result: str) -> None:
    found = prompt(step(sizes, prompts(1)), NOISE)
    rest = sizes[0]
    assert (found.result, found.cause) == (result, Cause.PROMPT_MISMATCH)
    assert found.numbers == {"answers": 1.0, "abs_diff_mean": sizes[1], "abs_diff_mean_others": rest}
    assert found.sentence == (
        "the trainer ran other prompts than the engine in 1 of 4 answers (a1): its mean abs d is "
        f"{sizes[1]:.2g}{f', that of the others {rest:.2g}' if rest else ''}; render each prompt once and hand the "
        "result to both"
    )


def test_prompts_are_compared_where_both_sides_say_which_they_ran() -> None:
    nothing = prompt(step([0.0] * 2, Proofs(prompts=[("a", None), (None, "b")])), NOISE)
    assert nothing.result == prompt(step([0.0], Proofs()), NOISE).result == "not_done"
    some = Proofs(prompts=[("a", None), ("a", "a"), ("b", "b"), (None, "b")])
    clear = prompt(step([0.0] * 4, some), NOISE)
    assert (clear.result, clear.sentence) == ("clear", "both sides ran the same ids of 2 prompts")
    many = prompt(step([0.5] * 10, prompts(*range(10), count=10)), NOISE)
    assert many.samples == tuple(f"a{n}" for n in range(8))
    assert "in 10 of 10 answers (a0, a1, a2 and 7 more): their mean abs d is 0.5; render" in many.sentence


@pytest.mark.parametrize(
    ("sampled_by", "scored_by"),
    [(None, ["v"]), (whole("v"), None), (None, None)],
)
def test_versions_are_compared_where_both_are_said(sampled_by: Spans | None, scored_by: list[str] | None) -> None:
    found = versions(step([0.0], Proofs(sampled_by=sampled_by, scored_by=scored_by)), NOISE)
    assert found.result == "not_done"


def test_answers_of_which_one_version_is_not_said_are_not_behind() -> None:
    proofs = Proofs(sampled_by=whole("", "v1", "v2"), scored_by=["v2", "", "v2"])
    found = versions(step([0.0, 0.5, 0.0], proofs), NOISE)
    assert (found.result, found.sentence) == ("clear", "the same weight version sampled and scored")


@pytest.mark.parametrize(
    ("sizes", "lag", "result"),
    [
        ([0.25, 0.5, 0.25, 0.25], 0, "suspicious"),
        ([0.25, 0.5625, 0.25, 0.25], 0, "explains"),
        ([0.03125, 0.09375, 0.03125, 0.03125], None, "explains"),
        ([0.03125, 0.09375, 0.03125, 0.03125], 0, "suspicious"),  # of a run that says its lag, noise is what it is
        ([0.0, 0.125, 0.0, 0.0], None, "suspicious"),
        ([0.0, 0.1875, 0.0, 0.0], None, "explains"),
        ([0.03125, 0.1875, 0.03125, 0.03125], 0, "explains"),
    ],
)
def test_older_weights_are_the_cause_where_their_answers_are_the_ones_that_are_off(
    sizes: list[float], lag: int | None, result: str
) -> None:
    proofs = Proofs(sampled_by=whole("2", "1", "2", "2"), scored_by=["2"] * 4)
    found = versions(step(sizes, proofs), NOISE, lag)
    assert (found.result, found.cause) == (result, Cause.STALE_WEIGHTS)
    assert found.numbers == {"answers": 1.0, "abs_diff_mean": sizes[1], "abs_diff_mean_others": sizes[0]}
    rest = f", that of the others {sizes[0]:.2g}" if sizes[0] else ""
    assert found.sentence == (
        f"1 of 4 answers (a1) was sampled under 1 and scored with 2: its mean abs d is {sizes[1]:.2g}{rest}; sync the "
        "engine's weights, or state the lag that the run allows"
    )


def test_only_the_tokens_that_older_weights_sampled_are_counted_as_theirs() -> None:
    spans = sampled((0, 0, 4, "2"), (1, 0, 1, "2"), (1, 1, 3, "1"), (1, 3, 4, "2"))
    one = step([0.0, 0.0], Proofs(sampled_by=spans, scored_by=["2", "2"]))
    train = one.train.copy()
    train[5:7] += 1.0
    found = versions(replace(one, train=train), NOISE)
    assert (found.numbers["abs_diff_mean"], found.numbers["abs_diff_mean_others"]) == (1.0, 0.0)


CLOSE = [0.03125] * 6


@pytest.mark.parametrize(
    ("spans", "told"),
    [
        (whole("1", "2", "2", "2", "2", "2"), True),
        (whole("1", "1", "2", "2", "2", "2"), True),
        (whole("1", "1", "1", "2", "2", "2"), False),  # half of them are a lag
        (whole("1", "1", "1", "1", "1", "1"), False),
        # It began before an update, and no answer is of the older weights as a whole.
        (sampled((0, 0, 3, "1"), (0, 3, 4, "2"), *((n, 0, 4, "2") for n in range(1, 6))), False),
        (sampled((0, 1, 4, "1"), *((n, 0, 4, "2") for n in range(1, 6))), False),
    ],
)
def test_of_a_run_that_does_not_say_its_lag_a_few_whole_answers_by_older_weights_are_told(
    spans: Spans, told: bool
) -> None:
    found = versions(step(CLOSE, Proofs(sampled_by=spans, scored_by=["2"] * 6)), NOISE)
    assert found.result == ("suspicious" if told else "clear")
    if not told:
        assert found.sentence == "the engine is behind by the lag of an asynchronous run"


def test_a_version_that_another_answer_had_in_time_is_a_lag() -> None:
    """One answer was scored by the older weights that sampled it, and one by newer ones."""
    proofs = Proofs(sampled_by=whole("1", "1", "2", "2", "2", "2"), scored_by=["2", "1", "2", "2", "2", "2"])
    assert versions(step(CLOSE, proofs), NOISE).result == "clear"


@pytest.mark.parametrize(("lag", "result"), [(2, "suspicious"), (3, "clear")])
def test_one_answer_of_several_that_is_too_far_behind_is_told(lag: int, result: str) -> None:
    proofs = Proofs(sampled_by=whole("4", "2", "3", "4", "5", "5"), scored_by=["5"] * 6)
    assert versions(step(CLOSE, proofs), NOISE, lag).result == result


def tensor(item: int, train: str | None = "t", modality: str = "image", name: str = "pixel_values") -> TensorSeen:
    return TensorSeen(modality, item, name, "r", "r", train)


def test_media_that_agree_are_counted() -> None:
    assert media(step([0.0], Proofs()), NOISE).result == "not_done"
    for count, said in ((1, "all 1 media tensor has one"), (3, "all 3 media tensors have one")):
        found = media(step([0.0], Proofs(tensors=count)), NOISE)
        assert (found.result, found.numbers) == ("clear", {"tensors": count})
        assert found.sentence == f"{said} digest on both sides"


def test_media_that_differ_are_told_by_the_first_and_counted() -> None:
    apart = [(2, tensor(1)), (2, tensor(3, None)), (0, tensor(0, "u", "audio", "features"))]
    found = media(step([0.5, 0.0, 0.5], Proofs(tensors=9, tensors_apart=apart)), NOISE)
    assert (found.result, found.cause) == ("explains", Cause.MEDIA_MISMATCH)
    assert found.sentence.startswith("image 1 of sample a2: the trainer got another tensor than the pixel_values that")
    assert found.numbers == {
        "answers": 2.0,
        "abs_diff_mean": 0.5,
        "abs_diff_mean_others": 0.0,
        "tensors_apart": 3,
    }
    assert (found.samples, found.tensors, found.modalities) == (
        ("a2", "a0"),
        ("pixel_values", "features"),
        ("image", "audio"),
    )


OF_DTYPE: Mapping[str, float] = {"float32": 1e-5, "float16": 0.0625, "bfloat16": 0.25}


@pytest.mark.parametrize(
    ("said", "size", "result"),
    [
        (None, 0.5, "not_done"),
        (("float32", "int4"), 0.5, "not_done"),
        (("bfloat16", "bfloat16"), 0.5, "clear"),
        (("bfloat16", "float16"), 0.03125, "clear"),
        (("bfloat16", "float16"), 0.0625, "clear"),  # as close as the finer one is
        (("bfloat16", "float16"), 0.0703125, "suspicious"),
        (("float16", "bfloat16"), 0.0703125, "suspicious"),
        (("float32", "bfloat16"), 0.0625, "suspicious"),
    ],
)
def test_two_dtypes_are_told_where_the_finer_one_would_be_closer(
    said: tuple[str, str] | None, size: float, result: str
) -> None:
    found = dtypes(step([size], Proofs(dtypes=said)), OF_DTYPE)
    assert found.result == result
    if result == "suspicious" and said is not None:
        finer = "float16" if "float16" in said else "float32"
        assert f", where {finer} on both sides leaves {OF_DTYPE[finer]:.2g} at most; " in found.sentence
        assert found.cause is Cause.ROUNDING
        assert found.numbers == {"abs_diff_mean": size, "of_the_finer": OF_DTYPE[finer]}
        assert found.sentence.startswith(
            f"the engine computes in {said[0]} and the trainer in {said[1]}: the mean abs d is {size:.2g}, where"
        )
    if said is not None and set(said) <= OF_DTYPE.keys():
        assert dtypes(step([size], Proofs(dtypes=said)), {dtype: OF_DTYPE[dtype] for dtype in said}).result == result
