"""What an open incident takes over from what is seen of it later, and whom its events tell; on both databases."""

import math
import time
from dataclasses import replace
from typing import Any

import pytest

from omni_rl.consistency.incidents import Figure, GoodStep
from omni_rl.errors import ConflictError, NotFoundError
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.types import IncidentEnd, NewIncident, NewState, SortKeys, StepKey

from .steps import CONFIG

FIGURE = Figure("image", "gen_kl_error", 0.8, 0.4)
WORSE = Figure("audio", "gen_kl_error", 2.0, 0.4)
DRIFT = NewIncident(2, "Step 7.", None, "masked", {"a": 1}, why="", figure=FIGURE, excess=2.0)
ENGINE = replace(DRIFT, kind="engine", headline="No answer for 3 s.")


@pytest.fixture
def run(ledger: Ledger) -> Ledger:
    ledger.put_run("run", CONFIG).result()
    return ledger


# What is seen after DRIFT, and what is other in the incident then.
GROWN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "half as much again is not worse": ({"excess": 3.0}, {}),
    "more than that is": (
        {"excess": 3.01, "headline": "Step 8.", "figure": WORSE},
        {"excess": 3.01, "headline": "Step 8.", "figure": WORSE},
    ),
    "a lesser severity with a worse figure": (
        {"severity": 1, "excess": 4.0, "figure": None},
        {"excess": 4.0, "figure": None},
    ),
    "a greater severity with a lesser figure": ({"severity": 3, "excess": 1.0}, {"severity": 3}),
    "a cause that was looked for leaves the figure": (
        {"severity": 3, "headline": "no news", "figure": WORSE, "cause": "kernel", "why": "K.", "attributed": True},
        {"severity": 3, "cause": "kernel", "why": "K."},
    ),
    "a cause where there was none": ({"cause": "kernel", "why": "K."}, {"cause": "kernel", "why": "K."}),
    "a cause without a why": ({"cause": "kernel", "severity": 3}, {"severity": 3}),
    "a why without a cause": ({"why": "K.", "severity": 3}, {"severity": 3}),
    "no cause where there was none": ({"cause": "unknown", "why": "Who knows?"}, {}),
    "the evidence of a cause": (
        {"cause": "kernel", "why": "K.", "evidence": {"b": 2}},
        {"cause": "kernel", "why": "K.", "evidence": {"b": 2}},
    ),
    "no evidence of a cause": (
        {"cause": "kernel", "why": "K.", "evidence": {}},
        {"cause": "kernel", "why": "K."},
    ),
    "evidence without a cause": ({"evidence": {"b": 2}, "headline": "no news"}, {}),
}


@pytest.mark.parametrize(("seen", "grown"), GROWN.values(), ids=list(GROWN))
def test_of_a_drift_that_is_seen_again(run: Ledger, seen: dict[str, Any], grown: dict[str, Any]) -> None:
    number = run.see_incident("run", DRIFT).result()
    before = run.incident(number)
    assert run.see_incident("run", replace(DRIFT, **seen)).result() == number
    after = run.incident(number)
    assert replace(after, changed=before.changed) == replace(before, **grown)
    told = [event.data["what"] for event in run.events()]
    assert told == (["opened", "grew"] if grown else ["opened"])
    assert (after.changed > before.changed) == bool(grown)


def test_what_says_no_figure_is_no_worse_when_it_is_seen_again(run: Ledger) -> None:
    number = run.see_incident("run", NewIncident(2, "First.")).result()
    assert run.see_incident("run", NewIncident(2, "Again.")).result() == number
    found = run.incident(number)
    assert (found.headline, found.excess, found.kind, found.subject, found.figure) == ("First.", 0.0, "drift", "", None)
    assert (found.cause, found.why, found.actions, found.evidence) == (None, "", (), {})


def test_any_other_incident_says_how_it_is_now(run: Ledger) -> None:
    number = run.see_incident("run", ENGINE).result()
    run.see_incident("run", replace(ENGINE, headline="No answer for 9 s.", evidence={})).result()
    found = run.incident(number)
    assert (found.headline, found.evidence, found.excess) == ("No answer for 9 s.", {"a": 1}, 2.0)
    run.see_incident("run", replace(ENGINE, headline="No answer for 9 s.", evidence={"b": 2})).result()
    assert run.incident(number).evidence == {"b": 2}
    assert [event.data["what"] for event in run.events()] == ["opened", "grew", "grew"]


def test_a_cause_that_was_found_gives_way_to_another_only_with_a_worse_figure(run: Ledger) -> None:
    number = run.see_incident("run", replace(DRIFT, cause="kernel", why="K.")).result()
    router = replace(DRIFT, cause="router", why="R.")
    run.see_incident("run", router).result()
    assert run.incident(number).cause == "kernel"
    run.see_incident("run", replace(router, excess=9.0)).result()
    assert (run.incident(number).cause, run.incident(number).why) == ("router", "R.")
    run.see_incident("run", replace(DRIFT, excess=99.0)).result()
    assert (run.incident(number).cause, run.incident(number).why) == ("router", "R."), "nothing was found this time"


def test_what_is_done_again_and_again_stands_once(run: Ledger) -> None:
    actions = ["", "masked", "masked", "", "halted", "masked"]
    for action in actions:
        number = run.see_incident("run", replace(DRIFT, action=action)).result()
    assert [done.what for done in run.incident(number).actions] == ["masked", "halted", "masked"]


def test_whoever_follows_events_is_told_of_every_change(run: Ledger) -> None:
    before = time.time()
    number = run.see_incident("run", replace(DRIFT, cause="kernel", why="K."), StepKey("run", 2, 7)).result()
    opened = run.incident(number)
    assert (opened.attempt, opened.step, opened.good, opened.acknowledged) == (2, 7, None, None)
    assert (opened.notes, opened.told, opened.ended) == ((), {}, None)
    assert before <= opened.opened == opened.changed == opened.actions[0].at <= time.time()
    run.see_incident("run", replace(DRIFT, severity=3)).result()
    taken = run.acknowledge(number, "ann").result()
    noted = run.add_note(number, "bob", "a driver").result()
    ended = run.end_incident(number, "mended").result()
    assert taken.acknowledged is not None
    assert ended.ended is not None
    assert opened.changed <= taken.acknowledged.at <= taken.changed <= noted.notes[0].at <= ended.ended <= ended.changed
    assert (taken.acknowledged.by, noted.notes[0].by) == ("ann", "bob")
    assert ended.actions[-1].at == ended.ended
    told = [event.data for event in run.events(run="run") if event.kind == "incident"]
    changes = [("opened", 2), ("grew", 3), ("acknowledged", 3), ("noted", 3), ("ended", 3)]
    assert told == [
        {"incident": number, "what": what, "kind": "drift", "severity": severity, "cause": "kernel"}
        for what, severity in changes
    ]


def test_a_webhook_is_told_each_state_once(run: Ledger) -> None:
    number = run.see_incident("run", DRIFT).result()
    for webhook, state in (("a", "open"), ("b", "open"), ("a", "ended")):
        run.incident_told(number, webhook, state).result()
    assert run.incident(number).told == {"a": "ended", "b": "open"}
    assert len(run.events()) == 1


def test_it_is_taken_once_and_not_when_it_is_over(run: Ledger) -> None:
    number = run.see_incident("run", DRIFT).result()
    taken = run.acknowledge(number, "ann").result()
    for other in ("al", "bob"):
        with pytest.raises(ConflictError, match=f"ann has incident {number} in hand; write a note to it"):
            run.acknowledge(number, other).result()
    run.end_incident(number, "mended").result()
    assert run.acknowledge(number, "ann").result().acknowledged == taken.acknowledged
    with pytest.raises(ConflictError, match=f"incident {number} is over"):
        run.acknowledge(number, "bob").result()
    for written in (run.acknowledge(99, "ann"), run.add_note(99, "ann", "?"), run.end_incident(99, "?")):
        with pytest.raises(NotFoundError, match="there is no incident 99"):
            written.result()


def test_the_end_of_a_subject_is_not_the_end_of_the_others(run: Ledger) -> None:
    numbers = {subject: run.see_incident("run", replace(ENGINE, subject=subject)).result() for subject in ("", "a")}
    run.see_incident("other", ENGINE).result()
    run.see_incident(None, ENGINE).result()
    run.end_incidents("run", IncidentEnd("engine", "it answers", "")).result()
    assert run.incident(numbers[""]).ended is not None
    assert run.incident(numbers["a"]).ended is None
    run.see_incident("run", ENGINE).result()
    run.end_incidents("run", IncidentEnd("engine", "all answer")).result()
    assert [one.run for one in run.incidents(still_open=True)] == [None, "other"]


def test_a_state_ends_incidents_before_it_opens_others(run: Ledger) -> None:
    first = run.see_incident("run", DRIFT).result()
    over = (IncidentEnd("drift", "it is ok again"),)
    run.put_state("run", NewState({}, SortKeys(5), seen=(DRIFT,), over=over, key=StepKey("run", 1, 9))).result()
    (found,) = run.incidents(still_open=True)
    assert found.id != first
    assert (found.run, found.attempt, found.step) == ("run", 1, 9)
    assert run.incident(first).actions[-1].what == "it is ok again"


def test_incidents_are_found_by_number_by_their_end_and_by_whether_they_are_open(run: Ledger) -> None:
    numbers = [run.see_incident("run", replace(ENGINE, subject=str(n))).result() for n in range(4)]
    other = run.see_incident("other", replace(ENGINE, severity=1)).result()
    assert [one.id for one in run.incidents()] == [other, *numbers[::-1]], "the newest first, however bad they are"
    ended = run.end_incident(numbers[1], "over").result().ended
    assert ended is not None
    assert [one.id for one in run.incidents(before=numbers[2])] == numbers[1::-1]
    assert [one.id for one in run.incidents(still_open=False)] == [numbers[1]]
    assert [one.id for one in run.incidents(run="run", still_open=True)] == [*numbers[:1:-1], numbers[0]]
    assert [one.id for one in run.incidents(run="other")] == [other]
    assert [one.id for one in run.incidents_since(ended)] == [*numbers, other]
    assert numbers[1] not in {one.id for one in run.incidents_since(math.nextafter(ended, math.inf))}


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_figure_that_is_no_number_is_none_when_it_is_read(run: Ledger, value: float) -> None:
    seen = replace(DRIFT, figure=replace(FIGURE, value=value), good=GoodStep(0, 0, ""))
    number = run.see_incident("run", seen).result()
    found = run.incident(number)
    assert found.figure is not None
    assert math.isnan(found.figure.value)
    assert (found.figure.kind, found.figure.limit, found.good) == ("image", 0.4, GoodStep(0, 0, ""))
    run.see_incident("run", seen).result()
    assert len(run.events()) == 1, "nothing is other"
