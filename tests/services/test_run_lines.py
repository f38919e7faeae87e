"""What is carried of a run from step to step: its line on the first screen, and where it stands."""

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
from omni_rl_services.coordinator.lines import Line
from omni_rl_services.coordinator.roster import read_run
from omni_rl_services.coordinator.runs import LiveRun, drift_answer, transition_events

from omni_rl.api.runs import RunBody
from omni_rl.consistency.actions import Cause
from omni_rl.consistency.incidents import Figure, GoodStep
from omni_rl.consistency.limits import Breach, Judgement, Severity
from omni_rl.consistency.policy import Drift, Outcome, Transition
from omni_rl.consistency.posted.history import History
from omni_rl.ledger.types import NewEvent, Run, StepKey

OK, WARN, MASK, PAUSE = Severity.OK, Severity.WARN, Severity.MASK, Severity.PAUSE


def judged(severity: Severity, mean: float = 0.1, value: float = 9.0) -> Any:
    breaches = (Breach("text", "gen_kl_error", value, 1.0, severity),) if severity > OK else ()
    figures = {"overall": {"logprob_abs_diff_mean": mean}}
    return SimpleNamespace(
        judgement=Judgement(severity, severity, breaches, ()),
        comparison=SimpleNamespace(figures=figures),
        versions=("v1", "v2"),
    )


def key(step: int, attempt: int = 1) -> StepKey:
    return StepKey("math", attempt, step)


def test_a_line_has_the_latest_step_the_last_good_one_and_the_worst_figure() -> None:
    line = Line().after(key(3), judged(OK), Drift(), {"reward": 0.5}, 7.0)
    assert (line.attempt, line.step, line.sealed, line.own) == (1, 3, 7.0, OK)
    assert line.good == GoodStep(1, 3, "v1, v2")
    assert line.figure is None
    line = line.after(key(4), judged(PAUSE), Drift(PAUSE), {}, 8.0)
    assert (line.good, line.figure) == (GoodStep(1, 3, "v1, v2"), Figure("text", "gen_kl_error", 9.0, 1.0))
    calm = line.after(key(5), judged(OK), Drift(PAUSE), {}, 9.0)
    assert (calm.good, calm.figure) == (GoodStep(1, 5, "v1, v2"), line.figure), "it still drifts by it"
    assert line.after(key(5), judged(MASK, value=3.0), Drift(PAUSE), {}, 9.0).figure != line.figure
    assert calm.after(key(6), judged(OK), Drift(), {}, 10.0).figure is None
    assert calm.after(key(6), judged(OK), Drift(gate="halted"), {}, 10.0).figure == line.figure
    unjudged = calm.after(key(6), judged(Severity.UNJUDGED), Drift(), {}, 10.0)
    assert (unjudged.good, unjudged.own, unjudged.figure) == (calm.good, Severity.UNJUDGED, None)


def test_a_line_draws_the_newest_32_steps() -> None:
    line = Line()
    for step in range(33):
        line = line.after(key(step), judged(OK, mean=step / 10), Drift(), {"reward": float(step)}, 1.0)
        assert len(line.recent) == min(step + 1, 32)
    assert line.recent[0] == (1, 1.0, 0.1)
    assert line.recent[-1] == (32, 32.0, 3.2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_what_is_no_number_is_not_drawn(value: float | None) -> None:
    mean = math.nan if value is None else value
    line = Line().after(key(3), judged(OK, mean=mean), Drift(), {"reward": value}, 7.0)
    assert line.recent == ((3, None, None),)
    assert Line().after(key(3), judged(OK, mean=0.0), Drift(), {"reward": 0.0}, 7.0).recent == ((3, 0.0, 0.0),)


def test_a_reward_that_comes_late_is_drawn_at_its_newest_step() -> None:
    line = Line(1, 3, 7.0, OK, recent=((2, None, 0.2), (3, None, 0.3), (2, None, 0.4)))
    late = line.rewarded(key(2), {"reward": 0.5, "kl": 1.0})
    assert late.recent == ((2, None, 0.2), (3, None, 0.3), (2, 0.5, 0.4)), "the first is of an attempt before"
    assert late == Line(1, 3, 7.0, OK, recent=late.recent)
    assert late.rewarded(key(2), {"reward": None}).recent[-1] == (2, None, 0.4)
    for same in (
        line.rewarded(key(2), {"kl": 1.0}),
        line.rewarded(key(2, attempt=2), {"reward": 0.5}),
        line.rewarded(key(4), {"reward": 0.5}),
    ):
        assert same is line


@pytest.mark.parametrize(
    "line",
    [
        Line(),
        Line(1, 3, 7.0, Severity.UNJUDGED),
        Line(1, 3, 7.0, OK, Figure("text", "ess", 0.1, 0.2), GoodStep(1, 2, "v"), ((2, None, 0.5), (3, 1.0, None))),
    ],
)
def test_a_line_comes_back_from_the_ledger_as_it_was(line: Line) -> None:
    run, stored = live(), json.loads(json.dumps(live().after(line=line).state))
    run.take_up(stored)
    assert run.line == line
    assert stored["line"]["own"] is None or type(stored["line"]["own"]) is int


def test_a_line_with_fewer_fields_is_read() -> None:
    run = live()
    run.take_up({"line": {"attempt": 1, "step": 2, "sealed": 3.0}})
    assert run.line == Line(1, 2, 3.0)


def live(**said: Any) -> LiveRun:
    return LiveRun.of(RunBody(run="math", model="m", dtype="bfloat16", **said), 1.0, 4, 600.0)


@pytest.mark.anyio
async def test_a_run_is_at_rest_where_nothing_is_under_way_and_nobody_at_work() -> None:
    for drift, rests in (
        (Drift(), True),
        (Drift(MASK), True),
        (Drift(PAUSE), False),
        (Drift(OK, gate="halted"), False),
        (Drift(OK, gate="paused"), False),
        (Drift(MASK, pursuit="attributing"), False),
    ):
        run = live()
        run.drift = drift
        assert run.at_rest is rests
        async with run.turn:
            assert not run.at_rest


@pytest.mark.parametrize(
    ("latest", "attempt", "is_live", "carries"),
    [
        (None, 1, True, False),
        ((2, 9), 1, False, False),
        ((2, 9), 2, True, True),
        ((2, 9), 3, True, False),
    ],
)
def test_an_attempt_before_the_latest_moves_nothing_and_a_new_one_knows_nothing(
    latest: tuple[int, int] | None, attempt: int, is_live: bool, carries: bool
) -> None:
    run = live()
    run.latest, run.history = latest, History(looks=5)
    assert run.is_live(attempt) is is_live
    assert run.history_of(attempt) == (History(looks=5) if carries else History())


@pytest.mark.parametrize(
    ("latest", "wanted", "found"), [(None, None, None), (None, 0, 0), ((3, 1), None, 3), ((3, 1), 0, 0), ((3, 1), 2, 2)]
)
def test_without_a_wanted_attempt_it_is_the_latest(
    latest: tuple[int, int] | None, wanted: int | None, found: int | None
) -> None:
    run = live()
    run.latest = latest
    assert run.attempt(wanted) == found


@pytest.mark.parametrize(
    ("method", "when", "weighed"),
    [
        ("none", "always", set()),
        ("tis", "always", {OK, WARN, MASK, PAUSE}),
        ("tis", "mask", {MASK, PAUSE}),
    ],
)
def test_steps_get_weights_from_mask_on_or_always_if_the_run_says_so(
    method: str, when: str, weighed: set[Severity]
) -> None:
    run = live(correction={"method": method, "when": when})
    assert {severity for severity in (OK, WARN, MASK, PAUSE) if run.weighs(severity)} == weighed


@pytest.mark.parametrize(
    ("activity", "sealed", "silent_after", "due"),
    [
        ("live", 100.0, None, 700.0),
        ("live", 100.0, 5.0, 105.0),
        ("live", None, None, None),
        ("silent", 100.0, None, None),
        ("ended", 100.0, None, None),
        ("waiting", 100.0, None, None),
    ],
)
def test_a_live_run_is_due_to_be_silent_after_its_time(
    activity: Any, sealed: float | None, silent_after: float | None, due: float | None
) -> None:
    run = live(silent_after=silent_after)
    state = run.after(activity=activity, line=Line(1, 2, sealed))
    assert (state.place.due, state.place.sealed) == (due, sealed)
    assert state.state["activity"] == activity


def test_a_run_comes_back_from_the_ledger_as_it_was() -> None:
    run = live(silent_after=5.0)
    drift = Drift(PAUSE, (OK, PAUSE), "paused", "attributing", MASK, Cause.KERNEL, True, True, 2.5)
    history = History(looks=3, sizes=((0.1, 0.2), (0.3, 0.4)), clean_steps=2)
    line = Line(2, 7, 90.0, PAUSE, Figure("text", "ess", 0.1, 0.2))
    state = run.after(drift=drift, history=history, line=line, activity="silent").state
    config = run.body.model_dump(mode="json")
    back = read_run(Run("math", 1.0, config, state, StepKey("math", 2, 7), 90.0), 4, 600.0)
    assert (back.drift, back.history, back.line, back.activity) == (drift, history, line, "silent")
    assert (back.latest, back.created, back.silent_after, back.policy.settle) == ((2, 7), 1.0, 5.0, 4)
    assert back.holder == "run:math"


def test_a_run_of_an_older_ledger_has_what_its_latest_step_says() -> None:
    config = live().body.model_dump(mode="json")
    bare = read_run(Run("math", 1.0, config), 3, 600.0)
    assert (bare.latest, bare.activity, bare.line, bare.drift, bare.sealed) == (None, "waiting", Line(), Drift(), None)
    run = read_run(Run("math", 1.0, config, None, StepKey("math", 2, 7), 90.0), 3, 600.0)
    assert (run.latest, run.activity, run.line, run.sealed) == ((2, 7), "live", Line(2, 7, 90.0), 90.0)
    assert run.silent_after == 600.0
    old = {"severity": 2, "at": 0, "cause": None, "gate": "open", "pursuit": "nothing", "surprise": 1}
    run = read_run(Run("math", 1.0, config, old, StepKey("math", 2, 7), 90.0), 3, 600.0)
    assert (run.drift, run.activity, run.line) == (Drift(MASK), "live", Line(2, 7, 90.0))


@pytest.mark.parametrize(("stored", "read"), [(None, None), (0, 0), (256, 256), (257, 256), (10**9, 256)])
def test_a_lag_of_an_older_version_is_at_most_what_there_may_be(stored: int | None, read: int | None) -> None:
    config = live().body.model_dump(mode="json") | {"lag": stored}
    assert read_run(Run("math", 1.0, config), 3, 600.0).body.lag == read


def test_a_runs_answer_is_made_again_when_it_has_changed() -> None:
    run = live()
    first = run.answer()
    assert (first.run, first.attempt, first.step, first.activity, first.drift.gate) == (
        "math",
        None,
        None,
        "waiting",
        "open",
    )
    assert run.answer() is first
    run.activity = "live"
    assert run.answer().activity == "live"
    run.drift = Drift(PAUSE, gate="halted", cause=Cause.KERNEL)
    assert run.answer().drift == drift_answer(run.drift)
    run.latest, run.line = (2, 7), Line(2, 7, 90.0)
    answer = run.answer()
    assert (answer.attempt, answer.step, answer.sealed) == (2, 7, 90.0)
    assert answer.drift.model_dump() == {"severity": "pause", "gate": "halted", "pursuit": "nothing", "cause": "kernel"}


def test_each_transition_is_an_event() -> None:
    moves = (Transition("severity", "ok", "pause", "why"), Transition("gate", "open", "paused", "why"))
    assert transition_events("math", Outcome(Drift(), (), moves), attempt=1, step=2) == (
        NewEvent("severity", {"attempt": 1, "step": 2, "before": "ok", "after": "pause", "reason": "why"}, "math"),
        NewEvent("gate", {"attempt": 1, "step": 2, "before": "open", "after": "paused", "reason": "why"}, "math"),
    )
