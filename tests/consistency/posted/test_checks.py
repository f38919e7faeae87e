"""Single checks at the edges of what they take for a cause, on steps that are made of numbers."""

import math
from dataclasses import replace

import numpy as np
import pytest

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.evidence import Check, TensorSeen
from omni_rl.consistency.limits import Severity
from omni_rl.consistency.posted.copies import BELOW, HELD, LEFT, clipped, is_floor, kept_in_fewer_bits, scaled
from omni_rl.consistency.posted.history import History
from omni_rl.consistency.posted.look import look
from omni_rl.consistency.posted.outliers import biased_answers, distant_answers, is_biased
from omni_rl.consistency.posted.places import Places
from omni_rl.consistency.posted.proofs import media, versions
from omni_rl.consistency.posted.step import CAP, Array, PostedStep, Proofs, Spans
from omni_rl.consistency.posted.support import ABOVE, FAR, UnitMean, support
from omni_rl.consistency.posted.values import CONSTANT_TOKENS, impossible, placeholders
from omni_rl.consistency.yardstick import Yardstick

NOISE = 1e-3


def step(rollout: Array, train: Array, answers: int = 1) -> PostedStep:
    """Answers of equal length, all of whose tokens count."""
    tokens = len(rollout)
    return PostedStep(
        [f"a{n}" for n in range(answers)],
        ["text"] * answers,
        np.linspace(0, tokens, answers + 1).astype(np.int64),
        np.asarray(rollout, np.float64),
        np.asarray(train, np.float64),
        np.ones(tokens, np.bool_),
        np.ones(answers),
    )


@pytest.fixture
def train() -> Array:
    return -np.random.default_rng(5).gamma(1.0, 1.5, 400)


@pytest.mark.parametrize(("base", "factor"), [("10", math.log(10)), ("2", math.log(2))])
@pytest.mark.parametrize("side", ["engine", "trainer"])
def test_logarithms_to_another_base_are_named(train: Array, base: str, factor: float, side: str) -> None:
    other = train / factor
    found = scaled(step(other, train) if side == "engine" else step(train, other))
    assert (found.result, found.cause) == ("explains", Cause.LOGPROB_POSTPROCESSING)
    assert found.sentence.startswith(
        f"the {side}'s logprobs are logarithms to base {base}: undone, the mean abs d falls"
    )
    by = 1 / factor if side == "engine" else factor
    assert found.numbers["factor"] == pytest.approx(by)
    assert found.numbers["constant"] == pytest.approx(0.0, abs=1e-9)
    assert found.numbers["left"] == pytest.approx(0.0, abs=1e-9)
    # As every mean of differences, this one counts a token as `CAP` at most.
    assert found.numbers["abs_diff_mean"] == pytest.approx(float(np.minimum(np.abs(other - train), CAP).mean()))


@pytest.mark.parametrize(("by", "plus", "said"), [(0.5, 0.7, "0.5 plus 0.7"), (0.5, -0.7, "0.5 less 0.7"), (3, 0, "3")])
def test_a_factor_and_a_constant_are_told(train: Array, by: float, plus: float, said: str) -> None:
    found = scaled(step(by * train + plus, train))
    assert found.sentence.startswith(f"the engine's logprobs are the trainer's times {said}: undone")
    assert found.numbers["factor"] == pytest.approx(by)
    assert found.numbers["constant"] == pytest.approx(plus, abs=1e-9)


def test_a_factor_of_another_base_with_a_constant_is_no_base(train: Array) -> None:
    assert "base" not in scaled(step(train / math.log(10) - 1.0, train)).sentence


@pytest.mark.parametrize("by", [0.05, 20.0])
def test_a_factor_beyond_reason_is_none(train: Array, by: float) -> None:
    assert scaled(step(by * train / 10, train / 10)).result == "clear"


@pytest.mark.parametrize(("share", "result"), [(0.75, "explains"), (1.25, "clear")])
def test_what_is_left_must_be_little(train: Array, share: float, result: str) -> None:
    """Little of what is off may be left, and little of how far the values spread."""
    plain = step(2 * train, train)
    spread = float(np.minimum(np.abs(2 * train - np.median(2 * train)), CAP).mean())
    signs = np.where(np.arange(len(train)) % 2, 1.0, -1.0)[np.argsort(np.argsort(train))]
    found = scaled(step(2 * train + share * LEFT * min(plain.size, spread) * signs, train))
    assert found.result == result


def test_few_tokens_and_constant_ones_are_no_function(train: Array) -> None:
    assert scaled(step(2 * train[:63], train[:63])).result == "clear"
    assert scaled(step(2 * train[:64], train[:64])).result == "explains"
    same = np.full(100, -1.5)
    assert scaled(step(2 * same, same)).result == "clear"


@pytest.mark.parametrize("side", ["engine", "trainer"])
def test_a_floor_is_told_with_how_many_lie_on_it(train: Array, side: str) -> None:
    floor = float(np.sort(train)[39])
    cut = np.maximum(train, floor)
    found = clipped(step(cut, train) if side == "engine" else step(train, cut))
    assert (found.result, found.cause) == ("explains", Cause.LOGPROB_POSTPROCESSING)
    assert f"none of the {side}'s logprobs is below {floor:g}, which 40 tokens have" in found.sentence
    assert found.numbers["floor"] == floor
    assert found.numbers["left"] == 0.0


@pytest.mark.parametrize(("held", "expected"), [(HELD - 1, False), (HELD, True)])
def test_a_floor_holds_several(held: int, expected: bool) -> None:
    values = np.array([-5.0] * held + [-1.0] * 20)
    other = values.copy()
    other[:held] = -7.0
    assert is_floor(values, other) is expected
    assert not is_floor(values, values)
    assert not is_floor(np.empty(0), np.empty(0))


@pytest.mark.parametrize(("under", "expected"), [(18, False), (19, True)])
def test_nearly_all_at_a_floor_lie_below_it_on_the_other_side(under: int, expected: bool) -> None:
    assert 18 / 20 < BELOW <= 19 / 20
    other = np.array([-7.0] * under + [-5.0] * (20 - under))
    assert is_floor(np.full(20, -5.0), other) is expected


def test_a_floor_beside_another_difference_explains_nothing(train: Array) -> None:
    floor = float(np.sort(train)[9])
    assert clipped(step(np.maximum(train, floor) - 0.5, train)).result == "clear"


def test_a_dtype_of_few_bits_is_told_of_the_side_that_has_it(train: Array) -> None:
    halves = train.astype(np.float16).astype(np.float64)
    found = kept_in_fewer_bits(step(train, halves), 1e-7)
    assert found.sentence.startswith("the trainer's logprobs are kept in float16: ")
    assert found.numbers["within"] == 1.0
    assert kept_in_fewer_bits(step(train, train), 1e-7).result == "clear"
    assert kept_in_fewer_bits(step(halves[:63], train[:63]), 1e-7).result == "clear"
    far = halves.copy()
    far[::50] += 2.0  # still on the grid, and no rounding
    assert kept_in_fewer_bits(step(np.round(far, 3), train), 1e-7).result == "clear"


def lost(d: Array, excess: float, noise: float = NOISE) -> tuple[str, dict[str, float], str]:
    found = support(step(np.full(len(d), -2.0), d - 2.0), UnitMean(excess, 0.01, 64, 0.0), noise)
    return found.result, dict(found.numbers), found.sentence


def test_a_support_that_was_cut_everywhere_is_told_with_its_numbers() -> None:
    d = np.full(200, -0.1)
    d[:10] = 0.015
    result, numbers, sentence = lost(d, -0.09)
    above, below = 10 * 0.015, 190 * 0.1
    assert result == "explains"
    assert numbers == pytest.approx(
        {
            "unit_mean": 0.91,
            "t": -9.0,
            "one_sided": (below - above) / (below + above),
            "far_above": 0.0,
            "far_below": 190.0,
            "abs_diff_mean": (above + below) / 200,
        }
    )
    assert "the sampled tokens 9.0% less probability" in sentence
    assert "and 99% of the difference lies on one side" in sentence
    assert "guided decoding or banned tokens" not in sentence, "most tokens carry the loss"


def test_a_support_that_was_cut_at_few_tokens_is_told_so() -> None:
    d = np.tile([NOISE, -NOISE], 500)
    d[:100] = -0.7
    result, numbers, sentence = lost(d, -0.05)
    assert result == "explains"
    assert numbers["far_below"] == 100.0
    assert "guided decoding or banned tokens, at 10.0% of the tokens" in sentence


def test_a_rise_is_no_lost_support() -> None:
    assert lost(np.full(200, -0.1), 0.0)[0] == "clear"


def test_both_signs_are_no_lost_support() -> None:
    assert lost(np.tile([0.1, -0.12], 100), -0.02, noise=0.01)[0] == "clear"
    assert lost(np.tile([0.1, -0.4], 100), -0.1, noise=0.01)[0] == "explains"


@pytest.mark.parametrize(("above", "result"), [(ABOVE - 1, "explains"), (ABOVE, "clear")])
def test_several_tokens_far_above_speak_against_it(above: int, result: str) -> None:
    d = np.full(200, -0.1)
    d[:above] = 2 * FAR * NOISE
    assert lost(d, -0.09)[0] == result


def test_an_answer_that_is_off_by_itself_is_told_with_its_mean() -> None:
    d = np.zeros((40, 50))
    d[7] = -2.0
    one = step(np.full(d.size, -2.0), d.ravel() - 2.0, answers=40)
    found = biased_answers(Places.of(one), 1e-4, 0.01)
    assert found is not None
    assert found.answers == (7,)
    assert found.numbers == pytest.approx({"answers": 1.0, "unit_mean": math.exp(-2.0)})
    assert f"the trainer gives the 50 tokens of a7 {1 - math.exp(-2.0):.2%} less probability" in found.sentence
    assert found.finding(one).samples == ("a7",)
    assert biased_answers(Places.of(one), 0.9, 0.01) is None, "it is within the tolerance"
    assert not is_biased(step(np.full(100, -2.0), np.full(100, -2.0)), 1e-4, 0.01)
    assert is_biased(step(np.full(100, -2.0), np.full(100, -2.3)), 1e-4, 0.01)


def test_an_answer_that_is_far_is_told_unless_one_token_makes_it_so() -> None:
    d = np.full((40, 50), 0.01)
    d[3] = 0.4
    d[5, 20] = 7.0
    one = step(np.full(d.size, -2.0), d.ravel() - 2.0, answers=40)
    errors = np.exp(np.abs(d)).mean(1)
    found = distant_answers(Places.of(one), errors, 0.05)
    assert found is not None
    assert found.answers == (3,)
    assert found.numbers == pytest.approx({"answers": 1.0, "abs_diff_mean": 0.4, "median": 0.01})
    assert "the mean abs d of a3 is 0.4, that of half of all answers at most 0.01" in found.sentence
    errors[3] = 1.0
    assert distant_answers(Places.of(one), errors, 0.05) is None, "router flips make it so"
    d[:8] = 0.4
    many = step(np.full(d.size, -2.0), d.ravel() - 2.0, answers=40)
    assert distant_answers(Places.of(many), np.exp(np.abs(d)).mean(1), 0.05) is None, "they are no outliers"


def test_the_median_is_that_of_all_answers_with_tokens_that_count() -> None:
    """A single token of most answers counts, and none of some."""
    d, counted = np.full((40, 50), 0.01), np.ones((40, 50), np.bool_)
    d[3], d[10:32], d[32:] = 0.4, 0.02, 0.0
    counted[10:32, 1:] = counted[32:] = False
    one = replace(step(np.full(d.size, -2.0), d.ravel() - 2.0, answers=40), counted=counted.ravel())
    found = distant_answers(Places.of(one), np.exp(np.abs(d)).mean(1), 0.05)
    assert found is not None
    assert found.numbers == pytest.approx({"answers": 1.0, "abs_diff_mean": 0.4, "median": 0.02})


@pytest.mark.parametrize(("tokens", "severity"), [(10, Severity.MASK), (400, Severity.WARN)])
def test_a_step_of_which_many_tokens_are_placeholders_is_masked(tokens: int, severity: Severity) -> None:
    train = np.full((8, tokens), -2.0)
    rollout = train.copy()
    rollout[:, -1] = 0.0
    seen = look(step(rollout.ravel(), train.ravel(), answers=8), Yardstick.of("bfloat16"), History(), np.ones(8))
    assert [of for finding, of in seen.found if finding.check is Check.PLACEHOLDERS] == [severity]


def test_of_many_answers_that_older_weights_sampled_eight_are_named() -> None:
    d, late = np.full((40, 50), 1e-3), np.arange(10)
    d[late] = 0.3
    spans = Spans(late, np.zeros(10, np.int64), np.full(10, 50), ["r/0/1/ab"] * 10)
    one = step(np.full(d.size, -2.0), d.ravel() - 2.0, answers=40)
    found = versions(replace(one, proofs=Proofs(sampled_by=spans, scored_by=["r/0/2/cd"] * 40)), 0.05)
    assert (found.result, found.cause) == ("explains", Cause.STALE_WEIGHTS)
    assert found.sentence.startswith("10 of 40 answers")
    assert found.samples == tuple(f"a{n}" for n in range(8))


@pytest.mark.parametrize(
    ("rendered", "engine", "train", "told"),
    [
        ("r", "r", "t", "the trainer got another tensor than the pixel_values that was rendered"),
        ("r", "e", "t", "the engine and the trainer got another tensor than the pixel_values that was rendered"),
        ("r", None, "t", "the engine did not get the pixel_values that was rendered"),
        ("r", None, None, "the engine and the trainer did not get the pixel_values that was rendered"),
        (None, "e", "t", "the engine and the trainer got different pixel_values"),
        (None, None, "t", "the engine did not get the pixel_values that the trainer got"),
        (None, "e", None, "the trainer did not get the pixel_values that the engine got"),
    ],
)
def test_which_side_got_another_tensor_is_told(
    rendered: str | None, engine: str | None, train: str | None, told: str
) -> None:
    apart = [(0, TensorSeen("image", 2, "pixel_values", rendered, engine, train))]
    one = step(np.full(8, -2.0), np.full(8, -1.0))
    found = media(replace(one, proofs=Proofs(tensors=3, tensors_apart=apart)), NOISE)
    assert (found.result, found.cause) == ("explains", Cause.MEDIA_MISMATCH)
    assert found.sentence.startswith(f"image 2 of sample a0: {told} (a0): its mean abs d is 1; ")


@pytest.mark.parametrize(("at", "said"), [(-1, True), (-2, False)])
def test_placeholders_for_the_last_token_of_an_answer_are_told_so(at: int, said: bool) -> None:
    train = np.full((8, 10), -2.0)
    rollout = train.copy()
    rollout[:, -1] = 0.0
    rollout[3, [at, -1]] = 0.0
    found = placeholders(step(rollout.ravel(), train.ravel(), answers=8))
    assert (found.result, found.cause) == ("explains", Cause.LOSS_MASK)
    assert ("; each the last of its answer" in found.sentence) is said


@pytest.mark.parametrize("side", ["engine", "trainer"])
def test_zeros_are_no_logprobs_where_the_other_side_is_not_certain(side: str) -> None:
    zeros, rng = np.zeros(CONSTANT_TOKENS), np.random.default_rng(0)
    converged, unsure = -rng.uniform(1e-9, 1e-3, len(zeros)), -rng.exponential(0.5, len(zeros))
    for other, result in ((converged, "clear"), (unsure, "explains")):
        found = impossible(step(*((zeros, other) if side == "engine" else (other, zeros))))
        assert found.result == result
