"""What Prometheus sees, and sinks that fail, hang or are slow."""

import math
import sys
import threading
import types
from dataclasses import replace
from typing import Any

import pytest
from omni_rl_services.coordinator import sinks
from omni_rl_services.coordinator.settings import WandbSettings
from omni_rl_services.coordinator.sinks import Aside, AttemptStart, SinkStep, Training
from omni_rl_services.coordinator.telemetry import Telemetry
from prometheus_client.parser import text_string_to_metric_families

from omni_rl.api.incidents import IncidentAnswer
from omni_rl.consistency.limits import Limit, Severity
from omni_rl.ledger.types import NewIncident
from tests.services.conftest import Serve, Served
from tests.services.posted import DRIFTED, RUN, post, seal
from tests.services.test_verdicts import CLEAN, step

STEP = SinkStep(
    AttemptStart("digits", 1, 1_795_500_000.0),
    12,
    Severity.WARN,
    {"overall": {"tokens": 4, "gen_kl_error": 0.02}},
    {"reward": 0.5},
    1_795_500_100.0,
    {"overall": {"gen_kl_error": Limit(0.01, 0.015, 0.5)}},
)


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.anyio
async def test_the_fields_names_by_run_and_kind(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    await post(served, DRIFTED)
    verdict = await seal(served)
    await served.http.post("/v1/syncs?wait=true", json={})
    found = samples((await served.http.get("/metrics")).text)
    for kind in ("overall", "text", "image"):
        for name in ("token_mult_prob_error", "gen_kl_error", "policy_kl_error", "logprob_abs_diff_max", "ess"):
            labels = (("kind", kind), ("run", "digits"))
            assert found[f"omni_rl_{name}", labels] == pytest.approx(verdict["figures"][kind][name])
    assert found["omni_rl_severity", (("run", "digits"),)] == 3
    assert found["omni_rl_ingested_tokens_total", ()] == 8
    assert found["omni_rl_syncs_total", (("outcome", "committed"),)] == 1
    assert found["omni_rl_sync_stall_seconds", ()] == 0.12
    assert found["omni_rl_ray_up", ()] == 1


@pytest.mark.anyio
async def test_requests_are_counted_by_route_and_not_by_name(served: Served) -> None:
    for number in range(5):
        await served.http.get(f"/v1/runs/nobody{number}")
        await served.http.get(f"/nowhere{number}")
    found = samples((await served.http.get("/metrics")).text)
    requests = {
        dict(labels)["route"]: n for (name, labels), n in found.items() if name == "omni_rl_http_requests_total"
    }
    assert requests["/v1/runs/{run}"] == 5
    assert requests["none"] == 5
    assert not [route for route in requests if "nobody" in route or "nowhere" in route]


def test_runs_that_are_silent_are_forgotten() -> None:
    telemetry = Telemetry(runs=3)
    for number in range(8):
        telemetry.runs.step(replace(STEP, of=AttemptStart(f"r{number}", 1, 0.0)))
    runs = {dict(labels)["run"] for name, labels in samples(telemetry.expose().decode()) if name == "omni_rl_severity"}
    assert len(runs) == 3
    assert "r0" not in runs


def test_a_kind_that_a_step_lacks_is_not_shown_as_if_it_were_new() -> None:
    telemetry = Telemetry(runs=1)
    both = {**STEP.figures, "image": {"tokens": 2, "gen_kl_error": 1.0}}
    telemetry.runs.step(replace(STEP, figures=both))
    telemetry.runs.step(STEP)
    found = samples(telemetry.expose().decode())
    for name in ("omni_rl_gen_kl_error", "omni_rl_limit"):
        assert {dict(labels)["kind"] for of, labels in found if of == name} == {"overall"}


def test_a_kind_without_limits_of_its_own_shows_those_of_all() -> None:
    telemetry = Telemetry(runs=1)
    telemetry.runs.step(replace(STEP, figures={**STEP.figures, "image": {"tokens": 2, "gen_kl_error": 1.0}}))
    found = samples(telemetry.expose().decode())
    for kind in ("overall", "image"):
        levels = {"warn": 0.01, "mask": 0.015, "pause": 0.5}
        for level, above in levels.items():
            labels = (("kind", kind), ("metric", "gen_kl_error"), ("run", "digits"), ("severity", level))
            assert found["omni_rl_limit", labels] == above


def test_a_runs_pace_is_the_median_of_its_newest_steps() -> None:
    telemetry = Telemetry(runs=1)
    for number, sealed in enumerate((0.0, 60.0, 121.0, 1000.0)):
        telemetry.runs.step(replace(STEP, step=number, sealed=sealed))
    found = samples(telemetry.expose().decode())
    assert found["omni_rl_step_interval_seconds", (("run", "digits"),)] == 61
    assert found["omni_rl_last_step_timestamp_seconds", (("run", "digits"),)] == 1000


@pytest.mark.anyio
async def test_a_method_that_a_route_does_not_have_is_no_series(served: Served) -> None:
    for method in ("PATCH", "DELETE", "HEAD", "BREW"):
        assert (await served.http.request(method, "/healthz")).status_code == 405
    found = samples((await served.http.get("/metrics")).text)
    methods = {dict(labels)["method"] for name, labels in found if name == "omni_rl_http_requests_total"}
    assert methods == {"other"}


@pytest.mark.anyio
async def test_the_trainers_figures_are_shown_whenever_they_come(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    await post(served, DRIFTED)
    await seal(served, training={"reward": 0.5})
    at = "/v1/runs/digits/attempts/1/steps/12/training"
    assert (await served.http.put(at, json={"training": {"kl": 0.01, "loss": None}})).status_code == 200
    found = samples((await served.http.get("/metrics")).text)
    told = {dict(labels)["figure"]: value for (name, labels), value in found.items() if name == "omni_rl_training"}
    assert (told["reward"], told["kl"]) == (0.5, 0.01)
    assert math.isnan(told["loss"])


@pytest.mark.anyio
async def test_metrics_survive_a_restart(serve: Serve) -> None:
    lost = ("ingested", "sealed_steps", "seal_seconds", "http_", "events", "syncs_total", "syncs_created")
    async with serve() as served:
        await served.http.post("/v1/runs", json=RUN)
        for step in range(3):
            await post(served, DRIFTED, step=step)
            await seal(served, step=step, training={"reward": 0.5})
        await served.http.post("/v1/syncs?wait=true", json={})
        before = samples((await served.http.get("/metrics")).text)
    async with serve() as served:
        after = samples((await served.http.get("/metrics")).text)
    kept = {key for key in before if not key[0].removeprefix("omni_rl_").startswith(lost)}
    assert {"omni_rl_severity", "omni_rl_limit", "omni_rl_training"} <= {name for name, _ in kept}
    assert {"omni_rl_gen_kl_error", "omni_rl_incident_open", "omni_rl_sync_elements"} <= {name for name, _ in kept}
    for key in kept:  # the ledger dates a step when it has it, a moment after the verdict
        near = 1.0 if key[0].endswith("_seconds") else 1e-9
        assert after[key] == pytest.approx(before[key], abs=near, nan_ok=True), key


@pytest.mark.anyio
async def test_the_newest_runs_that_fit_are_shown_after_a_restart(serve: Serve) -> None:
    async with serve() as served:
        for name in ("first", "second", "third"):
            await served.http.post("/v1/runs", json={**RUN, "run": name})
            await step(served, 0, CLEAN, run=name)
    async with serve(metrics_runs=2) as served:
        found = samples((await served.http.get("/metrics")).text)
    shown = {dict(labels)["run"] for name, labels in found if name == "omni_rl_gen_kl_error"}
    assert shown == {"second", "third"}


@pytest.mark.anyio
async def test_a_run_that_is_over_or_resumed_is_not_shown_as_it_was(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    await post(served, DRIFTED)
    await seal(served)
    severity = ("omni_rl_severity", (("run", "digits"),))
    assert samples((await served.http.get("/metrics")).text)[severity] == 3
    (incident,) = (await served.http.get("/v1/incidents")).json()
    await served.http.post(f"/v1/incidents/{incident['incident']}/end")
    assert samples((await served.http.get("/metrics")).text)[severity] == 0
    await served.http.post("/v1/runs/digits/end")
    assert severity not in samples((await served.http.get("/metrics")).text)


class Broken:
    """A sink whose every call fails."""

    def step(self, step: SinkStep) -> None:
        raise ConnectionError("no such project")

    def learnt(self, of: AttemptStart, step: int, training: Training) -> None:
        raise ConnectionError("no such project")

    def incident(self, of: AttemptStart, incident: IncidentAnswer) -> None:
        raise ConnectionError("no such project")

    def close(self) -> None:
        raise ConnectionError("still none")


class Hanging:
    """A sink that does not return until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.entered = threading.Event()

    def step(self, step: SinkStep) -> None:
        self.entered.set()
        self.go.wait()

    def learnt(self, of: AttemptStart, step: int, training: Training) -> None:
        return None

    def incident(self, of: AttemptStart, incident: IncidentAnswer) -> None:
        return None

    def close(self) -> None:
        return None


def test_a_sink_that_hangs_holds_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "BACKLOG", 4)
    monkeypatch.setattr(sinks, "CLOSE_SECONDS", 0.05)
    hanging = Hanging()
    aside = Aside(hanging, "slow")
    aside.step(STEP)
    assert hanging.entered.wait(5)
    for _ in range(10):
        aside.step(STEP)
    assert aside.dropped == 6
    aside.close()
    hanging.go.set()


@pytest.mark.anyio
async def test_a_broken_sink_stops_no_run(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=refuse))
    async with serve(wandb=WandbSettings(project="omni")) as served:
        await served.http.post("/v1/runs", json=RUN)
        for step in range(3):
            await post(served, DRIFTED, step=step)
            assert (await seal(served, step=step))["severity"] == "pause"


def test_steps_that_a_broken_sink_missed_are_counted() -> None:
    aside = Aside(Broken(), "broken")
    for _ in range(3):
        aside.step(STEP)
    aside.close()
    assert aside.count() == 3


@pytest.mark.anyio
async def test_an_open_alarm_and_what_the_clusters_members_are(serve: Serve) -> None:
    async with serve() as served:
        await served.http.post("/v1/runs", json=RUN)
        before = samples((await served.http.get("/metrics")).text)
        await post(served, DRIFTED)
        await seal(served)
        found = samples((await served.http.get("/metrics")).text)
    assert not [name for name, _ in before if name == "omni_rl_incident_open"]
    ((_, labels),) = [key for key in found if key[0] == "omni_rl_incident_open"]
    assert dict(labels) == {"run": "digits", "incident_kind": "drift", "cause": "unknown", "acknowledged": "no"}
    assert found["omni_rl_incident_open", labels] == 3
    assert found["omni_rl_cluster_members", (("role", "rollout"), ("state", "serving"))] >= 1
    assert found["omni_rl_cluster_info", (("run", "digits"),)] == 1


@pytest.mark.anyio
async def test_the_worst_open_incident_is_shown_however_many_are_newer(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    await post(served, DRIFTED)
    await seal(served)
    for number in range(101):
        silent = NewIncident(int(Severity.MASK), "No step came.", kind="silence")
        await served.coordinator.store.see_incident(f"run-{number}", silent)
    found = samples((await served.http.get("/metrics")).text)
    shown = [dict(labels) | {"severity": value} for (name, labels), value in found.items() if "incident_open" in name]
    assert len(shown) == 102
    assert [(one["run"], one["incident_kind"]) for one in shown if one["severity"] == 3] == [("digits", "drift")]
    state = (await served.http.get("/v1/state")).json()
    assert (state["incidents"][0]["run"], state["incidents"][0]["severity"]) == ("digits", "pause")
    assert [alarm["run"] for alarm in state["alarms"]] == ["digits"]
