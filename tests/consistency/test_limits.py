"""Limits at their edges: what a figure asks for, what it still holds, and which of several things wrong is told."""

import math
from collections.abc import Mapping

import pytest

from omni_rl.consistency.accidents import one_accident
from omni_rl.consistency.limits import Breach, Concern, Judgement, Limit, Severity, judge, limits_for
from omni_rl.errors import ConfigError
from omni_rl.kinds import MIXED_STATE, OVERALL, WITH_FLIPS

UNJUDGED, OK, WARN, MASK, PAUSE = Severity
LIMITS = limits_for("bfloat16", {"overall": {"gen_kl_error": {"warn": 1.0, "mask": 2.0, "pause": 3.0}}})


def of(value: float, tokens: int = 10, kind: str = OVERALL, metric: str = "gen_kl_error") -> Judgement:
    return judge({kind: {"tokens": tokens, metric: value}}, LIMITS)


@pytest.mark.parametrize(
    ("dtype", "kind", "metric", "warn", "mask", "pause"),
    [
        ("float32", "text", "logprob_abs_diff_mean", 1e-5, 1e-4, 5e-4),
        ("float32", "audio", "logprob_abs_diff_max", 1e-4, 1e-3, 1e-2),
        ("float32", OVERALL, "excluded_fraction", 1e-3, 1e-2, 0.1),
        ("bfloat16", OVERALL, "token_mult_prob_error", 1.05, 1.1, 1.5),
        ("bfloat16", "image", "logprob_abs_diff_mean", 0.05, 0.1, 0.4),
        ("bfloat16", "text", "gen_kl_error", 0.01, 0.015, 0.5),
        ("bfloat16", "text", "excluded_fraction", 0.1, 0.2, 0.25),
        ("bfloat16", "audio", "token_mult_prob_error", 1.1, 1.2, 1.5),
        ("bfloat16", "video", "logprob_abs_diff_mean", 0.1, 0.2, 0.4),
        ("bfloat16", "mixed", "gen_kl_error", 0.015, 0.03, 0.5),
        ("bfloat16", MIXED_STATE, "gen_kl_error", 0.015, 0.03, 0.5),
        ("float32", MIXED_STATE, "logprob_abs_diff_mean", 0.1, 0.2, 0.4),
        ("float16", "audio", "token_mult_prob_error", 1.0125, 1.025, 1.125),
        ("float16", OVERALL, "logprob_abs_diff_mean", 0.0125, 0.025, 0.1),
        ("float16", OVERALL, "excluded_fraction", 0.1, 0.2, 0.25),
        ("fp8", "text", "token_mult_prob_error", 1.1, 1.2, 2.0),
        ("fp8", "audio", "logprob_abs_diff_mean", 0.2, 0.4, 0.8),
    ],
)
def test_a_figure_at_a_limit_is_within_it_and_one_over_it_is_not(
    dtype: str, kind: str, metric: str, warn: float, mask: float, pause: float
) -> None:
    limits, whole = limits_for(dtype), {"tokens": 1000, "excluded_tokens": 500, "router_flips": 10**12}
    for limit, below, above in ((warn, OK, WARN), (mask, WARN, MASK), (pause, MASK, PAUSE)):
        for value, expected in ((limit * (1 - 1e-9), below), (limit * (1 + 1e-9), above)):
            assert judge({kind: {**whole, metric: value}}, limits).severity is expected


def test_the_figures_with_what_flips_leave_out_are_not_judged() -> None:
    assert judge({WITH_FLIPS: {"tokens": 99, "gen_kl_error": 9.0}}, LIMITS).severity is OK


@pytest.mark.parametrize(
    ("value", "severity", "holding"),
    [
        (0.79, OK, OK),
        (0.81, OK, WARN),
        (1.61, WARN, MASK),
        (2.39, MASK, MASK),
        (2.41, MASK, PAUSE),
        (3.01, PAUSE, PAUSE),
    ],
)
def test_a_severity_is_held_until_a_figure_falls_well_below_its_limit(
    value: float, severity: Severity, holding: Severity
) -> None:
    found = of(value)
    assert (found.severity, found.holding) == (severity, holding)


@pytest.mark.parametrize(("value", "holding"), [(1.0399, OK), (1.0401, WARN)])
def test_what_is_held_is_a_share_of_the_distance_from_agreement(value: float, holding: Severity) -> None:
    found = of(value, metric="token_mult_prob_error")
    assert (found.severity, found.holding) == (OK, holding)


@pytest.mark.parametrize(
    ("value", "tokens", "severity", "holding"),
    [(0.9, 7, UNJUDGED, UNJUDGED), (0.9, 8, OK, WARN), (1.7, 7, WARN, WARN), (1.7, 8, WARN, MASK)],
)
def test_eight_tokens_show_that_two_policies_agree(
    value: float, tokens: int, severity: Severity, holding: Severity
) -> None:
    found = of(value, tokens)
    assert (found.severity, found.holding) == (severity, holding)


def test_enough_tokens_of_one_kind_are_enough_and_a_kind_without_any_is_passed_over() -> None:
    text, image = {"tokens": 0, "gen_kl_error": math.nan}, {"tokens": 8, "gen_kl_error": 0.1}
    assert judge({"text": text, "image": image, "audio": {"tokens": 7}}, LIMITS).severity is OK
    assert judge({"text": text, "image": image | {"gen_kl_error": 9.0}}, LIMITS).severity is PAUSE
    assert judge({}, LIMITS).severity is UNJUDGED


def test_what_is_over_is_spared_or_told_with_the_limit_that_it_is_over() -> None:
    found = judge({"text": {"tokens": 10, "gen_kl_error": 2.5}, "image": {"tokens": 9, "gen_kl_error": 1.5}}, LIMITS)
    assert found.breaches == (
        Breach("text", "gen_kl_error", 2.5, 2.0, MASK),
        Breach("image", "gen_kl_error", 1.5, 1.0, WARN),
    )
    assert found.spared == ()
    figures = {"tokens": 10, "gen_kl_error": 1.001, "logprob_abs_diff_max": 0.5}
    assert judge({"text": figures}, LIMITS).reason == "text: gen_kl_error 1.001 is over 1 for one token of 10"


@pytest.mark.parametrize(
    ("limits", "right"),
    [
        ((1.0, 1.0, 1.0), True),
        ((1.0, 0.999, 1.0), False),
        ((1.0, 1.0, 0.999), False),
        ((0.0, 1.0, 1.0), False),
        ((0.001, 1.0, 1.0), True),
    ],
)
def test_limits_may_be_equal_and_must_lie_above_agreement(limits: tuple[float, float, float], right: bool) -> None:
    if right:
        assert Limit(*limits).severity(limits[0] / 2) is OK
        return
    with pytest.raises(ConfigError, match="must rise"):
        Limit(*limits)


@pytest.mark.parametrize("metric", ["token_mult_prob_error", "seq_mult_prob_error_max", "seq_mult_prob_error_mean"])
def test_a_runs_own_limits_of_a_ratio_lie_above_one(metric: str) -> None:
    with pytest.raises(ConfigError, match=rf"text\.{metric}: limits must rise .* lie above 1\.0"):
        limits_for("float32", {"text": {metric: {"warn": 0.9, "mask": 1.1, "pause": 1.2}}})


def test_a_runs_own_limits_stand_beside_those_that_it_does_not_give() -> None:
    changes = {
        "audio": {"gen_kl_error": {"warn": 1.0, "mask": 2.0, "pause": 3.0}},
        "robot": {"gen_kl_error": {"warn": 4.0, "mask": 5.0, "pause": 6.0}},
    }
    found = limits_for("bfloat16", changes)
    plain = limits_for("bfloat16")
    assert found["audio"] == {**plain["audio"], "gen_kl_error": Limit(1.0, 2.0, 3.0)}
    assert found["robot"] == {**plain[OVERALL], "gen_kl_error": Limit(4.0, 5.0, 6.0)}
    assert found[OVERALL] == plain[OVERALL]
    assert "robot" not in plain


def test_every_severity_has_its_label() -> None:
    assert [severity.label for severity in Severity] == ["unjudged", "ok", "warn", "mask", "pause"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (math.nan, "text: gen_kl_error is not a number, which is over every limit (pause)"),
        (math.inf, "text: gen_kl_error infinite is over 3 (pause)"),
        (3.14159, "text: gen_kl_error 3.142 is over 3 (pause)"),
    ],
)
def test_a_breach_says_what_is_over_which_limit(value: float, said: str) -> None:
    assert of(value, kind="text").reason == said


@pytest.mark.parametrize(
    ("value", "concern", "severity", "holding", "excess", "reason"),
    [
        (0.1, WARN, WARN, WARN, 1.0, "something else"),
        (0.1, PAUSE, PAUSE, PAUSE, 1.0, "something else"),
        (1.7, WARN, WARN, MASK, 1.7, "something else"),
        (2.5, WARN, MASK, PAUSE, 1.25, "overall: gen_kl_error 2.5 is over 2 (mask)"),
        (2.5, MASK, MASK, PAUSE, 1.25, "something else"),
        (2.5, PAUSE, PAUSE, PAUSE, 1.25, "something else"),
        (math.nan, PAUSE, PAUSE, PAUSE, math.inf, "something else"),
    ],
)
def test_a_concern_raises_the_severity_and_is_told_unless_a_figure_is_worse(
    value: float, concern: Severity, severity: Severity, holding: Severity, excess: float, reason: str
) -> None:
    found = of(value).with_concerns((Concern("less", WARN), Concern("something else", concern))[concern is WARN :])
    assert (found.severity, found.holding, found.reason) == (severity, holding, reason)
    assert found.excess == pytest.approx(excess)


def test_without_concerns_nothing_changes() -> None:
    for judgement in (of(0.1), of(0.1, tokens=3), of(2.5)):
        assert judgement.with_concerns(()) == judgement
    assert of(0.1).excess == 0.0
    assert of(0.1).reason == "every figure is within its limits"


def test_the_worst_figure_is_the_most_severe_and_of_these_the_furthest_over() -> None:
    limits = {"overall": {"a": Limit(1.0, 2.0, 10.0), "b": Limit(1.0, 20.0, 30.0), "c": Limit(1.0, 2.0, 10.0)}}
    found = judge({OVERALL: {"tokens": 10, "a": 3.0, "b": 19.0, "c": 4.0}}, limits)
    assert found.worst is not None
    assert found.worst.metric == "c"
    assert found.excess == 19.0


def figures(tokens: int, largest: float, p99: float) -> Mapping[str, float]:
    return {"tokens": tokens, "logprob_abs_diff_max": largest, "logprob_abs_diff_p99": p99}


@pytest.mark.parametrize(
    ("tokens", "p99", "expected"),
    [
        (7, 1.99, 2.0 / 7),
        (8, 1.93, 3.0 / 8),  # the 99th percentile of 8 is 0.93 of the way from the second to the largest
        (51, 1.5, 3.0 / 51),  # half of the way
        (101, 1.0, 3.0 / 101),  # the second itself
        (102, 1.0, 2.0 / 102),
        (51, math.nan, 2.0 / 51),
        (51, 0.9, 2.0 / 51),  # no second can be below 0
    ],
)
def test_one_accident_may_move_two_tokens_of_eight_to_a_hundred(tokens: int, p99: float, expected: float) -> None:
    assert one_accident("logprob_abs_diff_mean", figures(tokens, 2.0, p99)) == pytest.approx(expected)


def test_one_accident_moves_a_token_by_no_more_than_a_tie_can() -> None:
    for largest, of_tie in ((2.9, 2.9), (3.0, 3.0), (12.0, 3.0)):
        found = one_accident("logprob_abs_diff_mean", figures(200, largest, 0.0))
        assert found == pytest.approx(of_tie / 200)
    assert one_accident("gen_kl_error", figures(4, 1.0, 0.0)) == pytest.approx((math.e - 2) / 4)
    assert one_accident("token_mult_prob_error", figures(4, 1.0, 0.0)) == pytest.approx((math.e - 1) / 4)
    assert one_accident("ess", figures(4, 1.0, 0.0)) == 0.0


@pytest.mark.parametrize(("excluded", "flips", "accidents"), [(3, 3, 1), (4, 1, 1), (4, 2, 2), (4, 0, 1), (40, 5, 5)])
def test_one_accident_leaves_out_what_one_of_the_flips_does(excluded: int, flips: int, accidents: int) -> None:
    found = {"excluded_fraction": 0.2, "excluded_tokens": excluded, "router_flips": flips}
    assert one_accident("excluded_fraction", found) == pytest.approx(0.2 / accidents)
