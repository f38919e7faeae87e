"""What an incident is about, in a sentence, and what a person does about it."""

import math
from collections.abc import Mapping, Sequence

import pytest

from omni_rl.consistency.actions import CAUSES, Cause
from omni_rl.consistency.guidance import OF_KIND, remedy, section
from omni_rl.consistency.incidents import KINDS, Figure, GoodStep, figure_of, headline
from omni_rl.consistency.limits import Concern, Judgement, Severity, judge, limits_for

LIMITS = limits_for("bfloat16", {"overall": {"gen_kl_error": {"warn": 1.0, "mask": 2.0, "pause": 3.0}}})


def judged(of: Mapping[str, float]) -> Judgement:
    """By the `gen_kl_error` of each kind, of ten tokens."""
    return judge({kind: {"tokens": 10, "gen_kl_error": value} for kind, value in of.items()}, LIMITS)


@pytest.mark.parametrize(
    ("of", "kinds", "where"),
    [
        ({"overall": 4.0}, ["text", "image"], "all kinds together"),
        ({"overall": 4.0, "image": 3.5}, ["text", "image"], "image only"),
        ({"text": 4.0, "image": 3.5}, ["text", "image", "mixed"], "image, text only"),
        ({"text": 4.0, "image": 3.5}, ["text", "image"], "every kind"),
        ({"overall": 4.0, "text": 4.0}, ["text"], "text"),
    ],
)
def test_the_headline_says_which_kinds_are_over(of: Mapping[str, float], kinds: Sequence[str], where: str) -> None:
    assert headline(7, judged(of), kinds, None) == f"Step 7, {where}: gen_kl_error 4, limit 3."


def test_the_headline_says_up_to_which_step_the_run_was_clean() -> None:
    good = GoodStep(attempt=1, step=5, weights="run/1/5/ab")
    said = headline(7, judged({"text": 1.2345}), ["text", "image"], good)
    assert said == "Step 7, text only: gen_kl_error 1.23, limit 1; clean to step 5."
    lost = headline(7, judged({"text": math.nan}), ["text"], good)
    assert lost == "Step 7, text: gen_kl_error not a number, limit 3; clean to step 5."


@pytest.mark.parametrize(("severity", "told"), [(Severity.WARN, False), (Severity.MASK, False), (Severity.PAUSE, True)])
def test_a_concern_that_is_worse_than_every_figure_is_the_headline(severity: Severity, told: bool) -> None:
    found = judged({"text": 2.5}).with_concerns((Concern("4 tokens are above 0", severity),))
    said = "Step 7: 4 tokens are above 0." if told else "Step 7, text: gen_kl_error 2.5, limit 2."
    assert headline(7, found, ["text"], None) == said


def test_a_concern_alone_is_the_headline() -> None:
    found = judged({"text": 0.1}).with_concerns((Concern("the prompts differ", Severity.WARN),))
    good = GoodStep(attempt=1, step=6, weights="run/1/6/ab")
    assert headline(7, found, ["text"], good) == "Step 7: the prompts differ; clean to step 6."


def test_the_figure_of_an_incident_is_the_one_furthest_over_its_limit() -> None:
    found = judged({"overall": 3.5, "text": 2.5, "image": 9.0})
    assert figure_of(found) == Figure("image", "gen_kl_error", 9.0, 3.0)
    assert figure_of(judged({"overall": 0.5})) is None


@pytest.mark.parametrize("kind", KINDS)
def test_what_to_do_is_said_of_the_cause_and_where_there_is_none_of_the_kind(kind: str) -> None:
    assert remedy(kind, None) == OF_KIND[kind].remedy  # type: ignore[arg-type, index]
    assert remedy(kind, "loss_mask") == CAUSES[Cause.LOSS_MASK].remedy  # type: ignore[arg-type]
    assert (section(kind, None), section(kind, "loss_mask")) == (kind, "loss_mask")  # type: ignore[arg-type]
