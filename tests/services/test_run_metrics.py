"""The figures that `/metrics` shows of runs, syncs and incidents, series by series."""

import math
from dataclasses import replace
from typing import Any

import pytest
from omni_rl_services.coordinator.sinks import AttemptStart, SinkStep
from omni_rl_services.coordinator.telemetry import Telemetry

from omni_rl.bridge.seam import ReplicaState
from omni_rl.consistency.limits import Limit, Severity
from omni_rl.ledger.incidents import OpenSeverity
from omni_rl.sync.result import SyncResult
from tests.services.test_telemetry import samples

STEP = SinkStep(
    AttemptStart("digits", 1, 100.0), 12, Severity.WARN, {"overall": {"tokens": 4, "ess": 0.5}}, {}, 100.0, {}
)
OF_RUN = (("run", "digits"),)


def shown(telemetry: Telemetry, name: str) -> dict[tuple[tuple[str, str], ...], float]:
    found = samples(telemetry.expose().decode())
    return {labels: value for (of, labels), value in found.items() if of == f"omni_rl_{name}"}


def one(telemetry: Telemetry, name: str) -> float | None:
    """The value of a series of the run, None where there is none."""
    return shown(telemetry, name).get(OF_RUN)


def training(telemetry: Telemetry) -> dict[str, float]:
    return {dict(labels)["figure"]: value for labels, value in shown(telemetry, "training").items()}


def step(telemetry: Telemetry, *earlier: float, **said: Any) -> None:
    telemetry.runs.step(replace(STEP, **said), earlier)


def test_the_latest_step_is_shown_with_where_the_run_stands() -> None:
    telemetry = Telemetry(1)
    step(telemetry, severity=Severity.PAUSE)
    names = ("step", "attempt", "last_step_timestamp_seconds", "severity", "step_interval_seconds")
    assert [one(telemetry, name) for name in names] == [12, 1, 100, 3, None]
    step(telemetry, step=13, sealed=160.0, severity=Severity.OK)
    assert [one(telemetry, name) for name in names] == [13, 1, 160, 0, 60]
    telemetry.runs.severity("digits", Severity.MASK)
    assert one(telemetry, "severity") == 2
    telemetry.runs.severity("another", Severity.PAUSE)
    assert list(shown(telemetry, "severity")) == [OF_RUN]


def test_a_pace_is_of_the_newest_32_distances() -> None:
    telemetry = Telemetry(1)
    step(telemetry, 0.0, sealed=1000.0)
    for number in range(31):
        step(telemetry, sealed=1010.0 + 10 * number)
    # 1000 s once, and 10 s thirty-one times; then thirty-two times.
    assert one(telemetry, "step_interval_seconds") == 10
    telemetry = Telemetry(1)
    step(telemetry, *(1000.0 * number for number in range(40)), sealed=40_000.0)
    for number in range(16):
        step(telemetry, sealed=40_010.0 + 10 * number)
    assert one(telemetry, "step_interval_seconds") == 505, "sixteen of each"
    step(telemetry, sealed=40_170.0)
    assert one(telemetry, "step_interval_seconds") == 10


def test_a_new_attempt_has_a_pace_and_a_trainers_figures_of_its_own() -> None:
    telemetry = Telemetry(1)
    step(telemetry, training={"reward": 0.5})
    step(telemetry, sealed=200.0, training={"kl": 0.1})
    assert training(telemetry) == {"reward": 0.5, "kl": 0.1}
    step(telemetry, of=AttemptStart("digits", 2, 100.0), sealed=5000.0, training={"kl": 0.2})
    assert training(telemetry) == {"kl": 0.2}
    assert one(telemetry, "step_interval_seconds") == 100, "of two steps before"
    step(telemetry, of=AttemptStart("digits", 2, 100.0), sealed=5007.0)
    assert one(telemetry, "step_interval_seconds") == 7


def test_a_trainers_figures_stay_until_they_come_anew_and_are_64_at_most() -> None:
    telemetry = Telemetry(1)
    telemetry.runs.learnt("digits", 1, {"reward": 0.5})
    assert training(telemetry) == {}, "of a run that is not shown"
    step(telemetry, training={"reward": 0.5})
    telemetry.runs.learnt("digits", 2, {"reward": 0.9})
    assert training(telemetry) == {"reward": 0.5}, "of another attempt"
    telemetry.runs.learnt("digits", 1, {"reward": None, "kl": 0.1})
    found = training(telemetry)
    assert math.isnan(found["reward"])
    assert found["kl"] == 0.1
    telemetry.runs.learnt("digits", 1, {f"figure-{number}": number for number in range(62)})
    assert len(training(telemetry)) == 64
    telemetry.runs.learnt("digits", 1, {"one-more": 1.0, "kl": 0.3})
    found = training(telemetry)
    assert len(found) == 64
    assert "one-more" not in found
    assert found["kl"] == 0.3


@pytest.mark.parametrize("most", [1, 2, 3])
def test_as_many_runs_are_shown_as_are_asked_for_and_those_of_the_newest_steps(most: int) -> None:
    telemetry = Telemetry(most)
    for run in ("a", "b", "c", "a", "d"):
        step(telemetry, of=AttemptStart(run, 1, 0.0), training={"kl": 0.1})
    newest = ["d", "a", "c"][:most]
    for name in ("severity", "ess", "training", "step"):
        assert {dict(labels)["run"] for labels in shown(telemetry, name)} == set(newest)


def test_a_run_that_is_forgotten_has_no_series() -> None:
    telemetry = Telemetry(2)
    step(telemetry, training={"kl": 0.1}, limits={"overall": {"ess": Limit(0.1, 0.2, 0.3)}})
    telemetry.runs.forget("another")
    assert one(telemetry, "severity") == 1
    telemetry.runs.forget("digits")
    assert [of for (_, labels) in samples(telemetry.expose().decode()) for of in labels if of[0] == "run"] == []
    telemetry.runs.forget("digits")
    step(telemetry)
    assert one(telemetry, "severity") == 1


def test_limits_are_shown_by_severity_and_a_kind_has_its_own_or_those_of_all() -> None:
    telemetry = Telemetry(1)
    limits = {"overall": {"ess": Limit(0.1, 0.2, 0.3)}, "image": {"ess": Limit(0.4, 0.5, 0.6)}}
    figures = {kind: {"tokens": 4.0, "ess": 0.5} for kind in ("overall", "image", "text")}
    step(telemetry, figures=figures, limits=limits)
    found = {
        (of["kind"], of["metric"], of["severity"]): value
        for of, value in ((dict(labels), value) for labels, value in shown(telemetry, "limit").items())
    }
    low = {"warn": 0.1, "mask": 0.2, "pause": 0.3}
    high = {"warn": 0.4, "mask": 0.5, "pause": 0.6}
    assert found == {
        (kind, "ess", level): pytest.approx(value)
        for kind, values in (("overall", low), ("text", low), ("image", high))
        for level, value in values.items()
    }
    step(telemetry, figures=figures)
    assert shown(telemetry, "limit") == {}


SYNC = SyncResult(
    "s", "committed", "v2", "v2", bytes=100, elements=10, elements_proven=8, stall=0.5, seconds={"apply": 2.0}
)


def test_a_sync_is_counted_and_shown_if_it_was_to_bring_weights() -> None:
    telemetry = Telemetry(1)
    assert shown(telemetry, "syncs_total") == {
        (("outcome", outcome),): 0.0 for outcome in ("committed", "rolled_back", "failed")
    }
    telemetry.synced(SYNC, 50.0, weights=True)
    rolled_back = replace(SYNC, outcome="rolled_back", seconds={"prepare": 1.0}, elements_proven=0, stall=0.75)
    telemetry.synced(rolled_back, 60.0, weights=True)
    telemetry.synced(replace(SYNC, bytes=7), 70.0, weights=False)
    assert shown(telemetry, "syncs_total") == {
        (("outcome", "committed"),): 2.0,
        (("outcome", "rolled_back"),): 1.0,
        (("outcome", "failed"),): 0.0,
    }
    assert shown(telemetry, "sync_phase_seconds") == {(("phase", "prepare"),): 1.0}
    assert shown(telemetry, "sync_elements") == {(("proven", "yes"),): 0.0, (("proven", "no"),): 10.0}
    assert (shown(telemetry, "sync_bytes")[()], shown(telemetry, "sync_stall_seconds")[()]) == (100, 0.75)
    assert shown(telemetry, "last_sync_timestamp_seconds")[()] == 50, "it is when one was committed"


def test_of_incidents_with_the_same_labels_the_worst_is_shown() -> None:
    telemetry = Telemetry(1)
    rows: list[Any] = [
        OpenSeverity(run="a", kind="drift", cause="kernel", acknowledged=False, severity=3),
        OpenSeverity(run="a", kind="drift", cause="kernel", acknowledged=True, severity=2),
        OpenSeverity(run=None, kind="engine", cause=None, acknowledged=False, severity=3),
    ]
    telemetry.open_incidents(rows)
    found = shown(telemetry, "incident_open")
    names = ("run", "incident_kind", "cause", "acknowledged")
    assert {tuple(dict(labels)[name] for name in names): value for labels, value in found.items()} == {
        ("a", "drift", "kernel", "no"): 3,
        ("a", "drift", "kernel", "yes"): 2,
        ("", "engine", "", "no"): 3,
    }
    telemetry.open_incidents(rows[1:2])
    assert list(shown(telemetry, "incident_open").values()) == [2]


def test_members_are_counted_by_role_and_state_and_the_clusters_run_is_named() -> None:
    telemetry = Telemetry(1)
    states = ("serving", "serving", "dead")
    telemetry.members([ReplicaState(f"e{n}", "rollout", "v", state) for n, state in enumerate(states)])
    assert shown(telemetry, "cluster_members") == {
        (("role", "rollout"), ("state", "serving")): 2,
        (("role", "rollout"), ("state", "dead")): 1,
    }
    telemetry.members([])
    assert shown(telemetry, "cluster_members") == {}
    telemetry.cluster_of("a")
    telemetry.cluster_of("digits")
    assert shown(telemetry, "cluster_info") == {OF_RUN: 1}
    telemetry.cluster_of(None)
    assert shown(telemetry, "cluster_info") == {}


def test_what_a_sink_missed_is_asked_for_at_each_scrape() -> None:
    telemetry, missed = Telemetry(1), [3]
    telemetry.watch_dropped("wandb", lambda: missed[0])
    assert shown(telemetry, "sink_wandb_dropped_steps")[()] == 3
    missed[0] = 4
    assert shown(telemetry, "sink_wandb_dropped_steps")[()] == 4


@pytest.mark.parametrize(("seconds", "buckets"), [(0.0005, 12), (0.0011, 11), (0.2, 7), (50.0, 2), (101.0, 1)])
def test_seconds_fall_into_buckets_from_a_millisecond_to_a_hundred_seconds(seconds: float, buckets: int) -> None:
    telemetry = Telemetry(1)
    telemetry.seal_seconds.observe(seconds)
    found = shown(telemetry, "seal_seconds_bucket")
    assert len(found) == 12
    assert sum(found.values()) == buckets
