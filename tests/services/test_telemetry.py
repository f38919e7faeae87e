"""What Prometheus sees, and sinks that fail, hang or are slow."""

import sys
import threading
import types
from typing import Any

import pytest
from omni_rl_services.coordinator import sinks
from omni_rl_services.coordinator.settings import WandbSettings
from omni_rl_services.coordinator.sinks import Aside, JudgedStep, WandbSink
from omni_rl_services.coordinator.telemetry import Telemetry
from prometheus_client.parser import text_string_to_metric_families

from omni_rl.consistency.limits import Severity
from tests.services.conftest import Serve, Served
from tests.services.test_steps import DRIFTED, RUN, post, seal

STEP = JudgedStep("digits", 1, 12, Severity.WARN, {"overall": {"tokens": 4, "gen_kl_error": 0.02}}, {"reward": 0.5})


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.anyio
async def test_the_fields_names_by_run_and_bucket(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    await post(served, DRIFTED)
    verdict = await seal(served)
    await served.http.post("/v1/syncs?wait=true", json={})
    found = samples((await served.http.get("/metrics")).text)
    for bucket in ("overall", "text", "image"):
        for name in ("token_mult_prob_error", "gen_kl_error", "policy_kl_error", "logprob_abs_diff_max", "ess"):
            labels = (("bucket", bucket), ("run", "digits"))
            assert found[f"omni_rl_{name}", labels] == pytest.approx(verdict["figures"][bucket][name])
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
        telemetry.step(JudgedStep(f"r{number}", 1, 0, Severity.OK, STEP.figures, {}))
    runs = {dict(labels)["run"] for name, labels in samples(telemetry.expose().decode()) if name == "omni_rl_severity"}
    assert len(runs) == 3
    assert "r0" not in runs


def test_a_bucket_that_a_step_lacks_is_not_shown_as_if_it_were_new() -> None:
    telemetry = Telemetry(runs=1)
    both = {**STEP.figures, "image": {"tokens": 2, "gen_kl_error": 1.0}}
    telemetry.step(JudgedStep("digits", 1, 0, Severity.OK, both, {}))
    telemetry.step(STEP)
    found = samples(telemetry.expose().decode())
    assert {dict(labels)["bucket"] for name, labels in found if name == "omni_rl_gen_kl_error"} == {"overall"}


class Broken:
    """A sink whose every call fails."""

    def step(self, step: JudgedStep) -> None:
        raise ConnectionError("no such project")

    def close(self) -> None:
        raise ConnectionError("still none")


class Hanging:
    """A sink that does not return until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.entered = threading.Event()

    def step(self, step: JudgedStep) -> None:
        self.entered.set()
        self.go.wait()

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


def test_wandb_gets_every_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[dict[str, float], int]] = []
    begun: list[dict[str, Any]] = []
    ended: list[bool] = []

    def init(**options: Any) -> types.SimpleNamespace:
        begun.append(options)
        return types.SimpleNamespace(
            log=lambda values, step: logged.append((values, step)), finish=lambda: ended.append(True)
        )

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    sink = WandbSink(WandbSettings(project="omni", entity="team"))
    sink.step(STEP)
    sink.step(STEP)
    sink.close()
    assert [(run["project"], run["entity"], run["name"]) for run in begun] == [("omni", "team", "digits-1")]
    expected = {"overall/tokens": 4, "overall/gen_kl_error": 0.02, "train/reward": 0.5, "severity": 1}
    assert logged == [(expected, 12)] * 2
    assert ended == [True]


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
