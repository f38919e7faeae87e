"""The state machine on drift: limits, hysteresis, actions, and what must hold over any course of events."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_rl.consistency.actions import CAUSES, NOISE, WEIGHTS, Action, Cause
from omni_rl.consistency.limits import Judgement, Limit, Severity, judge, limits_for
from omni_rl.consistency.policy import Drift, DriftCommand, DriftPolicy, Gate, Outcome
from omni_rl.errors import ConfigError

UNJUDGED, OK, WARN, MASK, PAUSE = Severity
LIMITS = limits_for("bfloat16", {"overall": {"gen_kl_error": {"warn": 1.0, "mask": 2.0, "pause": 3.0}}})


def of(value: float, bucket: str = "overall") -> Judgement:
    return judge({bucket: {"tokens": 10, "gen_kl_error": value}}, LIMITS)


def drive(*values: float, policy: DriftPolicy | None = None, drift: Drift | None = None) -> list[Outcome]:
    outcomes = [Outcome(drift or Drift())]
    for value in values:
        outcomes.append((policy or DriftPolicy()).judged(outcomes[-1].drift, of(value)))
    return outcomes[1:]


@pytest.mark.parametrize(
    ("value", "severity"), [(1.0, OK), (1.01, WARN), (2.01, MASK), (3.01, PAUSE), (math.nan, PAUSE), (math.inf, PAUSE)]
)
def test_a_value_has_a_severity(value: float, severity: Severity) -> None:
    assert of(value).severity is severity


def test_a_kind_has_limits_of_its_own_or_those_of_all() -> None:
    figures = {kind: {"tokens": 9, "token_mult_prob_error": 1.07} for kind in ("text", "audio")}
    judgement = judge(figures, limits_for("bfloat16"))
    assert [(breach.kind, breach.severity) for breach in judgement.breaches] == [("text", WARN)]


def test_the_worst_breach_is_the_reason() -> None:
    figures = {"overall": {"tokens": 5, "gen_kl_error": 1.5}, "image": {"tokens": 5, "gen_kl_error": 9.0}}
    assert judge(figures, LIMITS).reason == "image: gen_kl_error 9 is over 3 (pause)"


def test_a_bucket_without_tokens_is_not_judged() -> None:
    judgement = judge({"overall": {"tokens": 0, "gen_kl_error": math.nan}}, LIMITS)
    assert (judgement.severity, judgement.holding) == (UNJUDGED, UNJUDGED)
    assert judgement.reason == "nothing was judged: no token counts, or too few to say"


def test_few_tokens_show_that_policies_part_but_not_that_they_agree() -> None:
    assert judge({"overall": {"tokens": 7, "gen_kl_error": 0.1}}, LIMITS).severity is UNJUDGED
    assert judge({"overall": {"tokens": 7, "gen_kl_error": 1.5}}, LIMITS).severity is WARN


def test_an_unjudged_step_neither_raises_nor_calms() -> None:
    nothing = judge({"overall": {"tokens": 0}}, LIMITS)
    for drift in (Drift(), Drift(severity=MASK, recent=(OK, OK)), Drift(severity=PAUSE, gate="paused")):
        assert DriftPolicy().judged(drift, nothing) == Outcome(drift)


def test_a_worse_figure_in_an_incident_is_news_and_a_like_one_is_not() -> None:
    outcomes = drive(3.5, 3.4, 9.0, 8.0, policy=DriftPolicy(gated=False))
    assert [outcome.drift.peak for outcome in outcomes] == [pytest.approx(3.5 / 3)] * 2 + [3.0] * 2


def test_published_figures_of_clean_runs_are_ok_and_dropped_images_are_not() -> None:
    clean = {"overall": {"tokens": 9, "token_mult_prob_error": 1.0364}}
    assert judge(clean, limits_for("bfloat16")).severity is OK
    assert judge({"image": {"tokens": 9, "gen_kl_error": 5.2}}, limits_for("bfloat16")).severity is PAUSE


@pytest.mark.parametrize("limits", [(1.0, 0.5, 2.0), (0.0, 1.0, 2.0), (1.0, 2.0, math.nan)])
def test_limits_must_rise(limits: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigError, match="must rise"):
        Limit(*limits)


def test_unknown_dtypes_and_bad_changes_are_named() -> None:
    with pytest.raises(ConfigError, match="float8"):
        limits_for("float8")
    with pytest.raises(ConfigError, match=r"image\.gen_kl_error"):
        limits_for("float32", {"image": {"gen_kl_error": {"warn": 2, "mask": 1, "pause": 3}}})


def test_severity_rises_at_once_and_falls_after_calm_steps() -> None:
    severities = [outcome.drift.severity for outcome in drive(2.5, 0.1, 0.1, 2.5, 0.1, 0.1, 0.1, 0.1)]
    assert severities == [MASK, MASK, MASK, MASK, MASK, MASK, OK, OK]


def test_a_figure_around_its_limit_does_not_flap() -> None:
    outcomes = drive(*[1.05, 0.95] * 20, policy=DriftPolicy(gated=False))
    assert sum(len(outcome.transitions) for outcome in outcomes) == 1


def test_severity_falls_to_what_the_figures_still_hold() -> None:
    assert drive(2.5, 1.5, 1.5, 1.5)[-1].drift.severity is WARN


def test_a_pause_closes_the_gate_and_searches_for_the_cause() -> None:
    (outcome,) = drive(5.0)
    assert outcome.commands == (DriftCommand.CLOSE, DriftCommand.ATTRIBUTE)
    assert outcome.drift == Drift(PAUSE, gate="paused", pursuit="attributing", at=PAUSE, peak=5.0 / 3.0)
    assert [(t.what, t.before, t.after) for t in outcome.transitions] == [
        ("severity", "ok", "pause"),
        ("gate", "open", "paused"),
        ("pursuit", "nothing", "attributing"),
    ]


def test_steps_under_way_when_the_gate_closed_do_not_open_it() -> None:
    assert drive(5.0, *[0.0] * 10)[-1].drift.severity is PAUSE


@pytest.mark.parametrize(("gate", "commands"), [("paused", (DriftCommand.OPEN,)), ("open", ()), ("halted", ())])
def test_a_recheck_that_is_ok_opens_a_paused_gate_and_no_other(gate: Gate, commands: tuple[DriftCommand, ...]) -> None:
    outcome = DriftPolicy().rechecked(Drift(MASK, gate=gate, pursuit="rechecking", at=MASK), of(0.1))
    assert outcome.commands == commands
    assert outcome.drift.gate == ("halted" if gate == "halted" else "open")


def test_where_the_gate_is_not_ours_verdicts_advise_only() -> None:
    outcomes = drive(5.0, 0, 0, 0, policy=DriftPolicy(gated=False))
    assert all(outcome.commands == () and outcome.drift.gate == "open" for outcome in outcomes)
    assert [outcome.drift.severity for outcome in outcomes] == [PAUSE, PAUSE, PAUSE, OK]


def test_stale_weights_are_resynced_and_rechecked() -> None:
    policy, drift = DriftPolicy(), drive(5.0)[0].drift
    resync = policy.attributed(drift, Cause.STALE_WEIGHTS, "engine has 7, trainer 8")
    recheck = policy.resynced(resync.drift)
    mended = policy.rechecked(recheck.drift, of(0.1))
    assert [*resync.commands, *recheck.commands, *mended.commands] == [
        DriftCommand.RESYNC,
        DriftCommand.RECHECK,
        DriftCommand.OPEN,
    ]
    assert mended.drift == Drift(at=PAUSE, resynced=True)
    assert not policy.judged(mended.drift, of(0.1)).drift.resynced, "the next step healed"


def test_what_the_probe_does_not_show_is_resynced_once_and_halts_with_the_next_step() -> None:
    policy, drift = DriftPolicy(), drive(5.0)[0].drift
    drift = policy.resynced(policy.attributed(drift, Cause.UNKNOWN, "nothing found").drift).drift
    drift = policy.rechecked(drift, of(0.1)).drift
    assert (drift.gate, drift.severity) == ("open", OK)
    again = policy.judged(drift, of(5.0)).drift
    halted = policy.attributed(again, Cause.UNKNOWN, "nothing found")
    assert (halted.drift.gate, DriftCommand.RESYNC in halted.commands) == ("halted", False)
    assert "persists after a resync" in halted.transitions[-1].reason


def test_what_persists_after_a_resync_halts() -> None:
    policy, drift = DriftPolicy(), drive(5.0)[0].drift
    drift = policy.resynced(policy.attributed(drift, Cause.UNKNOWN, "nothing found").drift).drift
    halted = policy.rechecked(drift, of(4.0))
    assert (halted.drift.gate, halted.commands) == ("halted", ())
    assert (halted.drift.alarming, Drift().alarming) == (True, False)
    assert "persists" in halted.transitions[0].reason


@pytest.mark.parametrize("cause", [Cause.MEDIA_MISMATCH, Cause.PROMPT_MISMATCH, Cause.LOGPROB_POSTPROCESSING])
def test_faults_that_no_sync_mends_halt(cause: Cause) -> None:
    halted = DriftPolicy().attributed(drive(2.5)[0].drift, cause, "digests differ")
    assert halted.drift.gate == "halted"
    assert halted.commands == (DriftCommand.CLOSE,)


def test_noise_is_masked_once_and_halts_when_it_comes_back_as_strong() -> None:
    policy, drift = DriftPolicy(), drive(5.0)[0].drift
    masked = policy.attributed(drift, Cause.ROUNDING, "the reference lies between both")
    assert masked.commands == (DriftCommand.OPEN,)
    assert masked.drift.severity is MASK
    again = policy.judged(masked.drift, of(5.0))
    assert policy.attributed(again.drift, Cause.ROUNDING, "again").drift.gate == "halted"


def test_a_failed_resync_or_recheck_halts() -> None:
    policy = DriftPolicy()
    drift = policy.attributed(drive(5.0)[0].drift, Cause.CORRUPT_WEIGHTS, "3 tensors").drift
    assert policy.resynced(drift, "replica 1 is gone").drift.gate == "halted"
    for judgement in (None, judge({"overall": {"tokens": 0}}, LIMITS)):
        halted = policy.rechecked(policy.resynced(drift).drift, judgement)
        assert (halted.drift.gate, halted.drift.severity) == ("halted", PAUSE)
        assert halted.transitions[0].reason == "the recheck could not be made"


def test_a_persons_word_opens_the_gate_and_ends_the_incident() -> None:
    policy = DriftPolicy()
    halted = policy.attributed(drive(5.0)[0].drift, Cause.MEDIA_MISMATCH, "digests differ")
    resumed = policy.resumed(halted.drift, "ann")
    assert (resumed.drift, resumed.commands) == (Drift(), (DriftCommand.OPEN,))


def test_a_result_that_comes_after_a_persons_word_changes_nothing() -> None:
    policy = DriftPolicy()
    resumed = policy.resumed(drive(5.0)[0].drift, "ann").drift
    assert policy.attributed(resumed, Cause.MEDIA_MISMATCH, "too late") == Outcome(Drift())
    assert policy.resynced(resumed, "too late") == policy.rechecked(resumed, None) == Outcome(Drift())


def test_every_cause_has_an_action_at_every_severity() -> None:
    assert list(CAUSES) == list(Cause)
    assert all(set(guide.actions) == set(Severity) for guide in CAUSES.values())
    assert all(guide.actions[OK] is Action.NONE for guide in CAUSES.values())


def test_a_sync_heals_what_is_of_weights_and_noise_only_masks() -> None:
    assert WEIGHTS == (Cause.STALE_WEIGHTS, Cause.CORRUPT_WEIGHTS, Cause.STALE_CACHE)
    assert set(NOISE) == {Cause.ROUTER, Cause.ROUNDING}


STEP = st.tuples(st.just("judged"), st.floats(0, 6) | st.just(math.nan))
EVENTS = st.lists(
    STEP
    | STEP
    | st.tuples(st.just("attributed"), st.sampled_from(Cause))
    | st.tuples(st.just("resynced"), st.sampled_from([None, "it failed"]))
    | st.tuples(st.just("rechecked"), st.floats(0, 6) | st.none())
    | st.tuples(st.just("resumed"), st.none()),
    max_size=40,
)


def feed(policy: DriftPolicy, drift: Drift, event: tuple[str, object]) -> Outcome:
    match event:
        case ("judged", float(value)):
            return policy.judged(drift, of(value))
        case ("attributed", Cause() as cause):
            return policy.attributed(drift, cause, "evidence")
        case ("resynced", failure):
            return policy.resynced(drift, None if failure is None else str(failure))
        case ("rechecked", value):
            return policy.rechecked(drift, of(value) if isinstance(value, float) else None)
    return policy.resumed(drift, "a person")


@given(EVENTS)
def test_over_any_course_of_events(events: list[tuple[str, object]]) -> None:
    policy, drift, opened, resyncs = DriftPolicy(), Drift(), True, 0
    for event in events:
        outcome = feed(policy, drift, event)
        before, drift = drift, outcome.drift
        assert outcome == feed(policy, before, event)
        # A change without a reason, or a reason without a change, is a fault.
        changed = {name for name in ("severity", "gate", "pursuit") if getattr(before, name) != getattr(drift, name)}
        assert {transition.what for transition in outcome.transitions} == changed
        assert all(transition.reason for transition in outcome.transitions)
        # Commands are what moves the real gate: they and the state never part.
        for command in outcome.commands:
            assert (command is DriftCommand.CLOSE) <= opened
            assert (command is DriftCommand.OPEN) <= (not opened)
            opened = {DriftCommand.CLOSE: False, DriftCommand.OPEN: True}.get(command, opened)
        assert opened == (drift.gate == "open")
        if event[0] == "judged":
            assert drift.severity >= of(event[1]).severity  # type: ignore[arg-type]
        if before.gate == "halted":
            assert drift.gate == "halted" or event[0] == "resumed"
        # Nothing waits for ever without a person being told: a paused gate is always being seen to.
        assert drift.gate != "paused" or drift.pursuit != "nothing"
        # One resync an incident.
        resyncs = 0 if not drift.resynced else resyncs + (DriftCommand.RESYNC in outcome.commands)
        assert resyncs <= 1


@given(st.lists(st.floats(0, 6), min_size=1, max_size=20), st.floats(0, 3))
def test_worse_figures_never_have_a_lower_severity(values: list[float], more: float) -> None:
    policy = DriftPolicy(gated=False)
    better = drive(*values, policy=policy)
    worse = drive(*[value + more for value in values], policy=policy)
    assert all(w.drift.severity >= b.drift.severity for w, b in zip(worse, better, strict=True))


def test_severity_falls_to_the_worst_that_its_last_steps_hold() -> None:
    """The last of them alone would let a worse run fall below one that stays at MASK."""
    found = [outcome.drift.severity for outcome in drive(3.1, 2.3, 2.3, 0.1, 0.1, 0.1, policy=DriftPolicy(gated=False))]
    assert found == [PAUSE, PAUSE, PAUSE, MASK, MASK, OK]
