"""The state machine on drift at its edges: what each input changes, what it leaves, and what is to be done."""

from dataclasses import replace

import pytest

from omni_rl.consistency.actions import CAUSES, Action, Cause
from omni_rl.consistency.limits import Judgement, Severity
from omni_rl.consistency.policy import Drift, DriftCommand, DriftPolicy, Gate, Pursuit, Transition

UNJUDGED, OK, WARN, MASK, PAUSE = Severity
CLOSE, ATTRIBUTE, RESYNC, RECHECK, OPEN = DriftCommand
POLICY = DriftPolicy()


def of(severity: Severity, holding: Severity | None = None) -> Judgement:
    return Judgement(severity, severity if holding is None else holding, (), ())


@pytest.mark.parametrize(
    ("before", "step", "after", "commands"),
    [
        (Drift(), WARN, Drift(WARN, (WARN,), pursuit="attributing", at=WARN), (ATTRIBUTE,)),
        (Drift(), MASK, Drift(MASK, (MASK,), pursuit="attributing", at=MASK), (ATTRIBUTE,)),
        (Drift(), PAUSE, Drift(PAUSE, (), "paused", "attributing", PAUSE), (CLOSE, ATTRIBUTE)),
        # What is under way goes on, and the gate closes all the same.
        (
            Drift(WARN, (), "open", "attributing", WARN),
            PAUSE,
            Drift(PAUSE, (), "paused", "attributing", WARN),
            (CLOSE,),
        ),
        (Drift(WARN, (), "open", "resyncing", WARN), MASK, Drift(MASK, (MASK,), "open", "resyncing", WARN), ()),
        # A gate that is shut is not closed again, and one that is halted waits for a person.
        (Drift(MASK, (), "paused", "rechecking", MASK), PAUSE, Drift(PAUSE, (), "paused", "rechecking", MASK), ()),
        (Drift(MASK, gate="halted"), PAUSE, Drift(PAUSE, gate="halted"), ()),
        (Drift(PAUSE, gate="halted"), OK, Drift(PAUSE, gate="halted"), ()),
        # The same severity again begins nothing.
        (Drift(WARN, (), cause=Cause.ROUNDING), WARN, Drift(WARN, (WARN,), cause=Cause.ROUNDING), ()),
        (Drift(MASK, (WARN,)), WARN, Drift(MASK, (WARN, WARN)), ()),
    ],
)
def test_a_judged_step_raises_the_severity_and_begins_what_is_not_under_way(
    before: Drift, step: Severity, after: Drift, commands: tuple[DriftCommand, ...]
) -> None:
    outcome = POLICY.judged(before, of(step))
    assert (outcome.drift, outcome.commands) == (after, commands)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Drift(PAUSE, gate="open"), Drift(PAUSE, (PAUSE,), gate="open")),
        (Drift(OK), Drift(PAUSE, (PAUSE,))),
    ],
)
def test_where_the_gate_is_not_ours_nothing_is_pursued(before: Drift, after: Drift) -> None:
    outcome = DriftPolicy(gated=False).judged(before, of(PAUSE))
    assert (outcome.drift, outcome.commands) == (after, ())


@pytest.mark.parametrize("settle", [1, 2, 3])
def test_severity_falls_after_as_many_steps_as_it_takes_to_settle(settle: int) -> None:
    drift = Drift(MASK)
    for left in range(settle, 0, -1):
        assert drift.severity is MASK
        drift = DriftPolicy(settle=settle).judged(drift, of(OK, WARN)).drift
        assert len(drift.recent) == settle - left + 1
    assert (drift.severity, drift.recent) == (WARN, (WARN,) * settle)
    assert len(DriftPolicy(settle=settle).judged(drift, of(OK)).drift.recent) == settle


def test_three_steps_settle_a_run_unless_it_says_otherwise() -> None:
    drift = Drift(WARN, (OK,))
    assert POLICY.judged(drift, of(OK)).drift.severity is WARN
    assert POLICY.judged(replace(drift, recent=(OK, OK)), of(OK)).drift.severity is OK


STALE = Drift(WARN, (OK, OK), cause=Cause.ROUNDING, resynced=True, excused=True, peak=3.0)


def test_an_incident_that_is_over_leaves_nothing() -> None:
    assert POLICY.judged(STALE, of(OK)).drift == Drift(OK, (OK, OK, OK))


@pytest.mark.parametrize("pursuit", ["attributing", "resyncing", "rechecking"])
def test_what_is_known_of_an_incident_stays_as_long_as_it_is_pursued(pursuit: Pursuit) -> None:
    under_way = replace(STALE, pursuit=pursuit)
    assert POLICY.judged(under_way, of(OK)).drift == replace(under_way, severity=OK, recent=(OK, OK, OK))


def test_every_change_is_told_with_the_steps_reason() -> None:
    outcome = POLICY.judged(Drift(), of(PAUSE))
    reason = of(PAUSE).reason
    assert outcome.transitions == (
        Transition("severity", "ok", "pause", reason),
        Transition("gate", "open", "paused", reason),
        Transition("pursuit", "nothing", "attributing", reason),
    )
    assert POLICY.judged(Drift(WARN), of(WARN)).transitions == ()


PURSUED = Drift(PAUSE, (), "paused", "attributing", PAUSE)


@pytest.mark.parametrize(
    ("before", "cause", "after", "commands"),
    [
        (
            PURSUED,
            Cause.STALE_WEIGHTS,
            Drift(PAUSE, (), "paused", "resyncing", PAUSE, Cause.STALE_WEIGHTS, resynced=True),
            (RESYNC,),
        ),
        (PURSUED, Cause.LOSS_MASK, Drift(PAUSE, (), "halted", "nothing", PAUSE, Cause.LOSS_MASK), ()),
        (PURSUED, Cause.ROUTER, Drift(MASK, (), "open", "nothing", PAUSE, Cause.ROUTER, excused=True), (OPEN,)),
        (
            replace(PURSUED, excused=True),
            Cause.ROUTER,
            Drift(PAUSE, (), "halted", "nothing", PAUSE, Cause.ROUTER, excused=True),
            (),
        ),
        # Noise that is not so strong is masked as often as it comes, and is no excuse.
        (
            Drift(MASK, (), "open", "attributing", MASK, excused=True),
            Cause.ROUTER,
            Drift(MASK, (), "open", "nothing", MASK, Cause.ROUTER, excused=True),
            (),
        ),
        (
            Drift(MASK, (), "open", "attributing", MASK),
            Cause.ROUTER,
            Drift(MASK, (), "open", "nothing", MASK, Cause.ROUTER),
            (),
        ),
        (
            Drift(MASK, (), "open", "attributing", MASK),
            Cause.LOSS_MASK,
            Drift(MASK, (), "halted", "nothing", MASK, Cause.LOSS_MASK),
            (CLOSE,),
        ),
        (
            Drift(WARN, (), "open", "attributing", WARN),
            Cause.LOSS_MASK,
            Drift(WARN, (), "open", "nothing", WARN, Cause.LOSS_MASK),
            (),
        ),
        # The severity has risen since the search began: the resync is held to what it is now.
        (
            Drift(PAUSE, (), "paused", "attributing", WARN),
            Cause.UNKNOWN,
            Drift(PAUSE, (), "paused", "resyncing", PAUSE, Cause.UNKNOWN, resynced=True),
            (RESYNC,),
        ),
        (
            replace(PURSUED, resynced=True),
            Cause.UNKNOWN,
            Drift(PAUSE, (), "halted", "nothing", PAUSE, Cause.UNKNOWN, resynced=True),
            (),
        ),
        (
            Drift(WARN, (), "open", "attributing", WARN, resynced=True),
            Cause.STALE_WEIGHTS,
            Drift(WARN, (), "halted", "nothing", WARN, Cause.STALE_WEIGHTS, resynced=True),
            (CLOSE,),
        ),
    ],
)
def test_a_cause_is_acted_on_by_the_severity(
    before: Drift, cause: Cause, after: Drift, commands: tuple[DriftCommand, ...]
) -> None:
    outcome = POLICY.attributed(before, cause, "the evidence")
    assert (outcome.drift, outcome.commands) == (after, commands)
    assert all(transition.reason.startswith(f"{cause}: the evidence") for transition in outcome.transitions)


@pytest.mark.parametrize(
    ("causes", "warn", "mask", "pause"),
    [
        (
            (Cause.STALE_WEIGHTS, Cause.CORRUPT_WEIGHTS, Cause.STALE_CACHE),
            Action.RESYNC,
            Action.RESYNC,
            Action.RESYNC,
        ),
        (
            (Cause.MEDIA_MISMATCH, Cause.TOKEN_SHIFT, Cause.LOSS_MASK, Cause.TRAIN_PACKING),
            Action.NONE,
            Action.HALT,
            Action.HALT,
        ),
        ((Cause.DECODE_PREFILL, Cause.BATCH_VARIANCE, Cause.KERNEL), Action.NONE, Action.MASK, Action.HALT),
        ((Cause.ROUTER, Cause.ROUNDING), Action.NONE, Action.MASK, Action.MASK),
        ((Cause.UNKNOWN,), Action.NONE, Action.MASK, Action.RESYNC),
    ],
)
def test_what_is_done_about_a_cause_is_what_can_heal_it(
    causes: tuple[Cause, ...], warn: Action, mask: Action, pause: Action
) -> None:
    for cause in causes:
        actions = CAUSES[cause].actions
        assert [actions[severity] for severity in Severity] == [Action.NONE, Action.NONE, warn, mask, pause]


PROBED = Drift(MASK, (MASK,), "paused", "rechecking", MASK, Cause.STALE_WEIGHTS, resynced=True, peak=4.0)


@pytest.mark.parametrize(
    ("at", "probe", "gate", "severity"),
    [
        (PAUSE, PAUSE, "halted", MASK),
        (PAUSE, MASK, "open", MASK),
        (PAUSE, WARN, "open", WARN),
        (MASK, PAUSE, "halted", MASK),
        (MASK, MASK, "halted", MASK),
        (MASK, WARN, "open", WARN),
        (WARN, MASK, "halted", MASK),
        (WARN, WARN, "open", WARN),  # too little to halt for
        (WARN, OK, "open", OK),
    ],
)
def test_what_a_probe_still_shows_halts_unless_it_has_become_less(
    at: Severity, probe: Severity, gate: Gate, severity: Severity
) -> None:
    outcome = POLICY.rechecked(replace(PROBED, at=at), of(probe))
    found = outcome.drift
    assert (found.gate, found.severity, found.pursuit) == (gate, severity, "nothing")
    assert outcome.commands == ((OPEN,) if gate == "open" else ())
    assert found.resynced
    if gate == "open":
        assert found.recent == ()
        assert (found.cause, found.peak) == ((None, 0.0) if probe is OK else (Cause.STALE_WEIGHTS, 4.0))
        assert {transition.reason for transition in outcome.transitions} == {f"rechecked: {of(probe).reason}"}
    else:
        assert outcome.transitions[0].reason == f"it persists after a resync: {of(probe).reason}"


@pytest.mark.parametrize("pursuit", ["nothing", "attributing", "resyncing", "rechecking"])
def test_results_of_what_is_not_under_way_change_nothing(pursuit: Pursuit) -> None:
    drift = Drift(PAUSE, (), "paused", pursuit, PAUSE)
    for due, outcome in (
        ("attributing", POLICY.attributed(drift, Cause.LOSS_MASK, "late")),
        ("resyncing", POLICY.resynced(drift)),
        ("resyncing", POLICY.resynced(drift, "late")),
        ("rechecking", POLICY.rechecked(drift, of(OK))),
        ("rechecking", POLICY.rechecked(drift, None)),
    ):
        assert (outcome.drift != drift) is (pursuit == due)
        assert bool(outcome.transitions) is (pursuit == due)


def test_a_resync_that_went_through_is_rechecked_and_one_that_failed_halts() -> None:
    drift = Drift(MASK, (), "open", "resyncing", MASK, Cause.STALE_WEIGHTS, resynced=True)
    done = POLICY.resynced(drift)
    assert (done.drift, done.commands) == (replace(drift, pursuit="rechecking"), (RECHECK,))
    failed = POLICY.resynced(drift, "r1 is gone")
    assert (failed.drift, failed.commands) == (replace(drift, pursuit="nothing", gate="halted"), (CLOSE,))
    assert {transition.reason for transition in failed.transitions} == {"the resync failed: r1 is gone"}


@pytest.mark.parametrize(("gate", "commands"), [("open", ()), ("paused", (OPEN,)), ("halted", (OPEN,))])
def test_a_person_opens_a_gate_that_is_shut(gate: Gate, commands: tuple[DriftCommand, ...]) -> None:
    outcome = POLICY.resumed(Drift(PAUSE, (WARN,), gate, "attributing", PAUSE, peak=3.0), "ann: looked at it")
    assert (outcome.drift, outcome.commands) == (Drift(), commands)
    assert {transition.reason for transition in outcome.transitions} == {"ann: looked at it"}


@pytest.mark.parametrize(
    ("severity", "gate", "alarming"),
    [(MASK, "open", False), (PAUSE, "open", True), (WARN, "halted", True), (MASK, "paused", False)],
)
def test_a_person_has_to_look_at_what_is_paused_or_halted(severity: Severity, gate: Gate, alarming: bool) -> None:
    assert Drift(severity, gate=gate).alarming is alarming
