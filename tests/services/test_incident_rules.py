"""What a run's drift shows of an incident: when one opens, what it says, and when it ends."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
from omni_rl_services.coordinator.incidents import (
    by_check,
    is_worth,
    over_at,
    pursued,
    seen_at,
    sentence,
    severity_of,
)
from omni_rl_services.coordinator.lines import Line
from omni_rl_services.coordinator.runs import LiveRun
from omni_rl_services.coordinator.verdicts import done_about

from omni_rl.api.runs import RunBody
from omni_rl.consistency.actions import Cause
from omni_rl.consistency.incidents import GoodStep
from omni_rl.consistency.limits import Breach, Judgement, Severity
from omni_rl.consistency.policy import Drift, Outcome, Transition
from omni_rl.ledger.types import IncidentEnd, NewIncident, StepKey

OK, WARN, MASK, PAUSE = Severity.OK, Severity.WARN, Severity.MASK, Severity.PAUSE
STOPPED = "generation is stopped, and the cause is looked for"
BROUGHT = "generation is stopped, and the weights are brought again"
HALTED = "generation is stopped until a person resumes it"
TOLD = "the trainer was told"


def run(drift: Drift, *, gated: bool = True, **said: Any) -> LiveRun:
    live = LiveRun.of(RunBody(run="math", model="m", dtype="bfloat16", gated=gated), 1.0, 3)
    live.drift = drift
    for name, value in said.items():
        setattr(live, name, value)
    return live


@pytest.mark.parametrize(
    ("drift", "worth", "severity"),
    [
        (Drift(), False, 0),
        (Drift(WARN), False, 1),
        (Drift(MASK), True, 2),
        (Drift(PAUSE), True, 3),
        (Drift(PAUSE, gate="paused"), True, 3),
        (Drift(WARN, gate="paused"), False, 1),
        (Drift(WARN, gate="halted"), True, 3),
        (Drift(OK, gate="halted"), True, 3),
        (Drift(MASK, gate="halted"), True, 3),
    ],
)
def test_a_drift_is_an_incident_from_mask_on_or_while_it_waits_for_a_person(
    drift: Drift, worth: bool, severity: int
) -> None:
    assert (is_worth(drift), severity_of(drift)) == (worth, severity)


@pytest.mark.parametrize(
    ("drift", "gated", "action"),
    [
        (Drift(PAUSE), False, TOLD),
        (Drift(PAUSE, gate="halted"), False, TOLD),
        (Drift(PAUSE, gate="halted"), True, HALTED),
        (Drift(PAUSE, gate="halted", pursuit="resyncing"), True, HALTED),
        (Drift(PAUSE, gate="paused", pursuit="resyncing"), True, BROUGHT),
        (Drift(PAUSE, gate="paused", pursuit="attributing"), True, STOPPED),
        (Drift(PAUSE, gate="paused", pursuit="rechecking"), True, STOPPED),
        (Drift(MASK, pursuit="attributing"), True, "generation goes on, and the cause is looked for"),
        (Drift(MASK, pursuit="resyncing"), True, "generation goes on, and the weights are brought again"),
        (Drift(MASK), True, TOLD),
    ],
)
def test_an_incident_says_what_was_done_about_it(drift: Drift, gated: bool, action: str) -> None:
    assert done_about(drift, gated) == action


@pytest.mark.parametrize(
    ("before", "after", "activity", "ends"),
    [
        (Drift(PAUSE), Drift(), "live", [IncidentEnd("drift", "calm")]),
        (Drift(MASK), Drift(WARN), "live", [IncidentEnd("drift", "calm")]),
        (Drift(PAUSE), Drift(MASK), "live", []),
        (Drift(), Drift(), "live", []),
        (Drift(), Drift(PAUSE), "live", []),
        (Drift(), Drift(), "silent", [IncidentEnd("silence", "a step came")]),
        (
            Drift(PAUSE),
            Drift(),
            "silent",
            [IncidentEnd("drift", "calm"), IncidentEnd("silence", "a step came")],
        ),
        (Drift(), Drift(), "ended", []),
        (Drift(), Drift(), "waiting", []),
    ],
)
def test_incidents_that_a_step_ends(before: Drift, after: Drift, activity: str, ends: list[IncidentEnd]) -> None:
    assert over_at(run(before, activity=activity), after, "calm") == tuple(ends)


def outcome(after: Drift, *reasons: str) -> Outcome:
    return Outcome(after, (), tuple(Transition("severity", "a", "b", reason) for reason in reasons))


@pytest.mark.parametrize(
    ("before", "after", "gated", "why", "action", "severity"),
    [
        # Another cause is news, and so is a gate that is halted now.
        (Drift(PAUSE, gate="paused"), Drift(PAUSE, gate="paused", cause=Cause.KERNEL), True, "Because.", STOPPED, 3),
        (
            Drift(PAUSE, gate="paused", cause=Cause.KERNEL),
            Drift(PAUSE, gate="halted", cause=Cause.KERNEL),
            True,
            "Because.",
            HALTED,
            3,
        ),
        (Drift(MASK, cause=Cause.KERNEL), Drift(MASK, gate="halted", cause=Cause.KERNEL), True, "Because.", HALTED, 3),
        (
            Drift(PAUSE, gate="halted", cause=Cause.KERNEL),
            Drift(PAUSE, gate="halted", cause=Cause.KERNEL),
            True,
            "",
            HALTED,
            3,
        ),
        (
            Drift(PAUSE, gate="paused", cause=Cause.KERNEL),
            Drift(PAUSE, gate="paused", pursuit="resyncing", cause=Cause.KERNEL),
            True,
            "",
            BROUGHT,
            3,
        ),
        (Drift(MASK, cause=Cause.KERNEL), Drift(MASK, cause=Cause.KERNEL), False, "", TOLD, 2),
    ],
)
def test_what_is_found_between_two_steps_lets_an_incident_grow(
    before: Drift, after: Drift, gated: bool, why: str, action: str, severity: int
) -> None:
    found, over = pursued(run(before, gated=gated), outcome(after, "kernel: because", "kernel: because"), {"a": 1})
    (grown,) = found
    assert over == ()
    assert grown == NewIncident(severity, "Kernel: because.", "kernel", action, {"a": 1}, why=why, attributed=True), (
        "a reason twice is said once"
    )


def test_reasons_that_differ_are_told_one_after_the_other_and_no_cause_is_none() -> None:
    (grown,), _ = pursued(run(Drift(PAUSE)), outcome(Drift(PAUSE), "one", "two", "one"), {})
    assert (grown.headline, grown.cause) == ("One; two.", None)


@pytest.mark.parametrize(
    ("before", "after", "over"),
    [
        (Drift(PAUSE), Drift(), (IncidentEnd("drift", "resumed by ann"),)),
        (Drift(PAUSE, gate="halted"), Drift(WARN), (IncidentEnd("drift", "resumed by ann"),)),
        (Drift(WARN), Drift(), ()),
        (Drift(), Drift(), ()),
    ],
)
def test_an_incident_is_over_where_the_drift_is_none_any_more(
    before: Drift, after: Drift, over: tuple[IncidentEnd, ...]
) -> None:
    assert pursued(run(before), outcome(after, "resumed by ann"), {}) == ((), over)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", ""),
        ("  ", ""),
        ("a", "A."),
        (" a step ", "A step."),
        ("Done.", "Done."),
        ("why?", "Why?"),
        ("stop!", "Stop!"),
        ("xML: a", "XML: a."),
        ("9 tokens", "9 tokens."),
    ],
)
def test_a_text_becomes_a_sentence(text: str, told: str) -> None:
    assert sentence(text) == told


def test_findings_are_told_by_the_name_of_their_check() -> None:
    found: list[dict[str, Any]] = [
        {"check": "media", "result": "clear"},
        {"check": "prompt", "result": "explains", "n": 1},
    ]
    assert by_check(found) == {"media": {"result": "clear"}, "prompt": {"result": "explains", "n": 1}}


def judged(severity: Severity, **tokens: int) -> Any:
    breach = Breach("text", "gen_kl_error", 0.8, 0.1, PAUSE)
    judgement = Judgement(severity, severity, (breach,) if severity > OK else (), (), ())
    figures = {kind: {"tokens": count} for kind, count in tokens.items()}
    return SimpleNamespace(judgement=judgement, comparison=SimpleNamespace(figures=figures))


VERDICT: Any = SimpleNamespace(cause="kernel", evidence=[{"check": "media", "result": "clear"}], sentence="it is so")


@pytest.mark.parametrize(
    ("severity", "drift", "opens"),
    [
        (PAUSE, Drift(PAUSE), True),
        (MASK, Drift(MASK), True),
        (MASK, Drift(PAUSE), True),
        (WARN, Drift(PAUSE), False),
        (OK, Drift(PAUSE), False),
        (PAUSE, Drift(WARN), False),
        (MASK, Drift(OK, gate="halted"), True),
    ],
)
def test_a_step_shows_an_incident_if_it_is_worth_one_itself(severity: Severity, drift: Drift, opens: bool) -> None:
    found = seen_at(run(Drift()), StepKey("math", 1, 6), judged(severity, text=5), drift, VERDICT)
    assert bool(found) is opens


@pytest.mark.parametrize(
    ("tokens", "where"), [({"text": 1, "image": 0}, "text"), ({"text": 5, "image": 1}, "text only"), ({}, "all kinds")]
)
def test_an_incident_is_told_with_the_kinds_that_the_step_has(tokens: dict[str, int], where: str) -> None:
    line = Line(good=GoodStep(1, 5, "w"))
    (found,) = seen_at(
        run(Drift(), line=line), StepKey("math", 1, 6), judged(PAUSE, **tokens), Drift(PAUSE, gate="paused"), VERDICT
    )
    assert found.headline.startswith(f"Step 6, {where}")
    assert "clean to step 5" in found.headline
    assert (found.severity, found.cause, found.action, found.why) == (3, "kernel", STOPPED, "It is so.")
    assert found.evidence == {"media": {"result": "clear"}}
    assert found.figure is not None
    assert (found.figure.value, found.figure.limit) == (0.8, 0.1)
    assert math.isclose(found.excess, 8.0)
    assert found.good == GoodStep(1, 5, "w")
    assert not found.attributed
