"""What a side posted against what its own logits give, at the edges of what that explains."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.attribution.reported import Side, enough, reported
from omni_rl.consistency.bands import Bands
from omni_rl.consistency.evidence import Check, Finding
from omni_rl.consistency.records import SampleRecord
from tests.cases.others import bfloat16

BANDS = Bands("bfloat16", mean=1 / 16, token=0.5, relative=0.05)
SIDES = ("engine", "trainer")
Array = NDArray[Any]


def drawn(tokens: int, seed: int = 0) -> Array:
    """Multiples of 1/1024, so that what is added to them is exact."""
    return -np.round(np.random.default_rng(seed).gamma(2.0, 1.0, tokens) * 1024) / 1024 - 1


def ask(
    by: Sequence[float] | Array,
    left: Sequence[float] | Array | float = 0.0,
    side: Side = "engine",
    bands: Bands = BANDS,
    mine: Array | None = None,
    answers: int = 1,
) -> Finding:
    """Of answers of which a side posted `by` more than its logits give, which are `left` below the other side's."""
    own = drawn(len(by)) if mine is None else mine
    said, other = own + np.asarray(by), own + np.asarray(left)
    engine, trainer = (said, other) if side == "engine" else (other, said)
    records = [
        SampleRecord(f"a{n}", "text", 5, *sides)
        for n, sides in enumerate(zip(np.split(engine, answers), np.split(trainer, answers), strict=True))
    ]
    values = {f"a{n}": part for n, part in enumerate(np.split(own, answers))}
    return reported(records, values, side, 0.75, None, bands)


def alternating(by: float, tokens: int = 40) -> Array:
    return by * np.where(np.arange(tokens) % 2, 1.0, -1.0)


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (0.1, 0.04),
        (0.15625, 0.0625),
        (1.0, 0.0625),
        (3.125, 0.0625),
        (5.0, 0.1),
        (math.inf, 0.0625),
        (math.nan, 0.0625),
    ],
)
def test_what_may_be_left_is_noise_if_that_is_less_than_there_was(before: float, expected: float) -> None:
    assert enough(before, BANDS) == pytest.approx(expected)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("by", "left", "mean", "result"),
    [
        (1 / 16, 0.0, 1 / 16, "clear"),
        (1 / 15, 0.0, 1 / 16, "explains"),
        (0.355, 0.055, 1 / 16, "explains"),  # noise is left, which is more than 0.15 of the difference
        (0.37, 0.07, 1 / 16, "clear"),
        (0.46, 0.06, 1 / 16, "explains"),
        (0.47, 0.07, 1 / 16, "clear"),  # more than noise, and more than 0.15 of the difference is left
        (0.455, 0.055, 1 / 64, "explains"),  # more than noise, and less than 0.15 of it
        (0.47, 0.07, 1 / 64, "clear"),
    ],
)
def test_a_side_posted_something_else_if_little_is_left_without_it(
    by: float, left: float, mean: float, result: str, side: Side
) -> None:
    bands = Bands("bfloat16", mean, 0.5, 0.05)
    found = ask(alternating(by), alternating(left), side, bands)
    assert found.result == result
    assert found.check is (Check.ENGINE_REPORTED if side == "engine" else Check.TRAINER_REPORTED)
    if result == "explains":
        assert found.numbers["abs_diff_mean"] == pytest.approx(by - left)
        assert found.numbers["reported_mean"] == pytest.approx(by)
        assert found.numbers["left"] == pytest.approx(left)
        assert found.numbers["asked"] == 0.75
        assert "at temperature 0.75: " in found.sentence
        assert found.sentence.endswith(f"the mean abs d falls from {by - left:.2g} to {left:.2g}")
    else:
        assert found.sentence == f"the {side} posted what its logits give, up to {by:.2g}"


def test_a_mean_that_is_infinite_is_no_number_of_a_finding() -> None:
    found = ask([math.inf, -math.inf, *[0.0] * 18])
    assert (found.result, found.numbers) == ("clear", {"left": 0.0, "asked": 0.75})


@pytest.mark.parametrize(("far", "result"), [(2, "explains"), (3, "clear")])
def test_rounding_may_have_one_token_of_twenty_far_off(far: int, result: str) -> None:
    left = np.zeros(40)
    left[:far] = 3.0
    assert ask(alternating(0.4), left).result == result


@pytest.mark.parametrize(
    ("posted", "by", "beside", "left", "result"),
    [
        (3, 1.0, 0, 0.0, "explains"),
        (2, 1.0, 0, 0.0, "clear"),  # so few may be accidents
        (3, 0.5, 0, 0.0, "clear"),
        (3, 0.51, 0, 0.0, "explains"),
        (3, -0.51, 0, 0.0, "explains"),
        (3, 1.25, 0, 0.5, "explains"),  # 0.75 from the other side
        (3, 1.25, 0, 0.51, "clear"),
        (7, 1.0, 3, 0.0, "explains"),  # 7 of 10 nats
        (6, 1.0, 3, 0.0, "clear"),
    ],
)
@pytest.mark.parametrize("side", SIDES)
def test_a_few_far_tokens_are_told_if_the_own_logits_agree_there(
    posted: int, by: float, beside: int, left: float, result: str, side: Side
) -> None:
    """Others are as far off by what the sides compute; the mean of all 400 is noise."""
    off, apart = np.zeros(400), np.zeros(400)
    off[:posted], apart[:posted] = by, left
    apart[200 : 200 + beside] = 1.0
    assert ask(off, apart, side).result == result


def test_without_answers_of_its_own_nothing_is_told() -> None:
    assert reported([], {}, "engine", 1.0, None, BANDS).result == "clear"
    record = SampleRecord("a", "text", 5, drawn(9), drawn(9, seed=1))
    assert reported([record], {}, "engine", 1.0, None, BANDS).result == "clear"


@pytest.mark.parametrize(
    ("below", "by_first", "mean_of", "cause"),
    [
        (0, 0.3, 0.3, Cause.SAMPLING_SUPPORT),
        (2, 0.3, 0.3, Cause.SAMPLING_SUPPORT),  # one in fifty
        (3, 0.3, 0.3, Cause.LOGPROB_POSTPROCESSING),
        (0, 0.014, 0.3, Cause.SAMPLING_SUPPORT),
        (0, 0.011, 0.3, Cause.LOGPROB_POSTPROCESSING),  # a penalty spares the first tokens
        (0, 0.0, 0.3, Cause.LOGPROB_POSTPROCESSING),
    ],
)
def test_a_cut_support_makes_every_token_likelier_and_a_penalty_spares_the_first(
    below: int, by_first: float, mean_of: float, cause: Cause
) -> None:
    by = np.full((2, 50), mean_of) + 0.01 * np.cos(np.arange(50))
    by[:, 0] = by_first
    by[0, 10 : 10 + below] = -0.26
    found = ask(by.ravel(), answers=2)
    assert (found.result, found.cause) == ("explains", cause)
    if cause is Cause.SAMPLING_SUPPORT:
        assert found.numbers["above_mean"] == pytest.approx(by.mean())
    assert ask(by.ravel(), side="trainer", answers=2).cause is Cause.STALE_WEIGHTS


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("dtype", "rounded"), [("float16", lambda v: v.astype(np.float16).astype(np.float64)), ("bfloat16", bfloat16)]
)
def test_values_that_were_rounded_on_their_way_are_told_with_the_dtype(
    dtype: str, rounded: Callable[[Array], Array], side: Side
) -> None:
    mine = -np.random.default_rng(0).gamma(2.0, 1.0, 60) - 1
    found = ask(rounded(mine) - mine, side=side, bands=Bands("float32", 1e-5, 1e-4, 1e-4), mine=mine)
    assert found.cause is Cause.ROUNDING
    assert f"they were rounded to {dtype} on their way" in found.sentence


@pytest.mark.parametrize(
    ("by", "says"),
    [
        ([0.0, *[1.0] * 3, *[0.0] * 16], "3 of 20 tokens were changed after the logits, by 0.15 in the mean"),
        ([1.0, -1.0] * 10, "20 of 20 tokens were changed after the logits, by 1 in the mean"),
        ([0.2, -0.2] * 10, "0 of 20 tokens were changed after the logits, by 0.2 in the mean"),
        ([0.0, 4.0, *[0.0] * 18], "1 of 20 tokens was changed after the logits, by 0.2 in the mean"),
    ],
)
def test_what_was_changed_after_the_logits_is_counted(by: list[float], says: str) -> None:
    mine = np.linspace(-40.0, -2.0, 20)
    found = ask(by, mine=mine)
    assert says in found.sentence
    assert found.numbers["tokens"] == sum(abs(each) > 0.25 for each in by)
    trainer = ask(by, side="trainer", mine=mine)
    assert trainer.cause is Cause.STALE_WEIGHTS
    assert "in the mean, as those of other weights than its version names" in trainer.sentence


def unrelated(by: Array, mine: Array) -> bool:
    found = ask(by, mine=mine)
    assert found.result == "explains"
    return found.cause is Cause.SAMPLE_PAIRING


@pytest.mark.parametrize(("far", "told"), [(1.35, False), (1.45, True)])
def test_a_few_values_are_another_answers_if_they_are_as_far_as_these_are_apart(far: float, told: bool) -> None:
    """Neighbours half of the answer and one token away are two nats apart; 0.7 of that is 1.4."""
    mine = np.where(np.arange(20) % 2, -5.0, -7.0)
    by = np.zeros(20)
    by[:7] = alternating(far, 7)
    assert unrelated(by, mine) is told


@pytest.mark.parametrize(("lean", "told"), [(0.7, True), (0.9, False)])
def test_another_answers_values_are_as_often_higher_as_lower(lean: float, told: bool) -> None:
    """The values are 6 nats off: up to 0.8 of that may be one-sided, by chance."""
    mine, lower = np.tile([-15.0, -17.0], 100), round(100 * (1 + lean))
    by = np.random.default_rng(1).permutation(np.r_[np.full(lower, -6.0), np.full(200 - lower, 6.0)])
    assert unrelated(by, mine) is told


@pytest.mark.parametrize(("share", "told"), [(0.4, True), (0.6, False)])
def test_values_that_go_with_the_own_ones_are_no_other_answers(share: float, told: bool) -> None:
    """Their correlation with the own ones is `share`."""
    rng = np.random.default_rng(2)
    mine, other = rng.standard_normal((2, 400))
    mine = (mine - mine.mean()) / mine.std()
    other -= other.mean() + (other @ mine) / 400 * mine
    theirs = share * mine + math.sqrt(1 - share**2) * other / other.std()
    off = Bands("bfloat16", 1e-4, 1e-3, 0.05)  # so that every token is off
    found = ask(theirs - mine, bands=off, mine=mine - 9.0)
    assert (found.cause is Cause.SAMPLE_PAIRING) is told


def test_one_number_for_every_token_is_no_function_of_the_own_values() -> None:
    mine = np.where(np.arange(20) % 2, -5.0, -7.0)
    assert unrelated(-6.0 - mine, mine)


def test_the_answers_of_which_a_side_posted_something_else_are_named() -> None:
    by = np.concatenate([alternating(1.0, 8), alternating(1 / 16, 8), alternating(0.07, 8), np.full(8, 0.0)])
    assert ask(by, answers=4).samples == ("a0", "a2")


def test_only_the_tokens_are_compared_that_the_own_logits_have() -> None:
    mine = drawn(20)
    by = np.r_[alternating(0.5, 10), np.full(10, 9.0)]
    record = SampleRecord("a", "text", 5, mine + by, mine)
    found: Mapping[str, float] = reported([record], {"a": mine[:10]}, "engine", 1.0, None, BANDS).numbers
    assert (found["reported_mean"], found["left"]) == (0.5, 0.0)


@pytest.mark.parametrize("at", [0.105, 0.3, 0.47, 0.82, 1.21, 2.2, 5.1, 9.5])
def test_a_temperature_is_found_to_a_hundredth_from_the_furthest_two_answers(at: float) -> None:
    """Each try is a forward of the trainer over these answers, and the first and the last one over all of them."""
    logits = {f"a{n}": -np.linspace(0.5, 4.0, 40) * (1 + n / 10) for n in (2, 0, 3, 1)}
    records = [SampleRecord(name, "text", 5, of / at, of.copy()) for name, of in logits.items()]
    asked = list[tuple[float, list[str]]]()

    def rescore(temperature: float, names: Sequence[str] | None) -> dict[str, Array]:
        asked.append((temperature, list(names or logits)))
        return {name: logits[name] / temperature for name in names or logits}

    found = reported(records, logits, "engine", 1.0, rescore, Bands("float32", 1e-3, 1e-2, 1e-3))
    assert found.cause is Cause.LOGPROB_POSTPROCESSING
    assert found.numbers["fits"] == pytest.approx(at, rel=0.01)
    assert f"they are those at temperature {found.numbers['fits']:.3g};" in found.sentence
    assert [names for _, names in asked] == [list(logits), *[["a3", "a2"]] * (len(asked) - 2), list(logits)]
    assert asked[0][0] == 1.0
    assert len(asked) <= 16


def test_logprobs_at_temperature_one_are_called_raw_without_a_search() -> None:
    logits = {"a": -np.linspace(0.5, 4.0, 40)}
    asked = list[float]()

    def rescore(temperature: float, names: Sequence[str] | None) -> dict[str, Array]:
        asked.append(temperature)
        return {name: of / temperature for name, of in logits.items()}

    own = {"a": logits["a"] / 0.7}
    records = [SampleRecord("a", "text", 5, logits["a"], own["a"])]
    found = reported(records, own, "engine", 0.7, rescore, BANDS)
    assert (found.numbers["fits"], asked) == (1.0, [1.0])
    assert "they are those at temperature 1, the raw ones;" in found.sentence
