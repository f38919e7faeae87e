"""Syncs, checks, the gate and jobs through the API, against a hand-written cluster."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from omni_rl_services.coordinator import core, jobs

from omni_rl.bridge.seam import ClusterState, SyncRequest
from omni_rl.consistency.actions import Cause
from omni_rl.errors import BridgeProtocolError, NonFiniteWeightsError, RayUnavailableError, SyncRolledBackError
from omni_rl.sync.result import SyncResult
from omni_rl.sync.states import Observer
from tests.services.conftest import Serve, Served
from tests.services.fake_bridge import LOST, MODULES, PART, THEIRS, FakeBridge
from tests.services.test_steps import RUN

pytestmark = pytest.mark.anyio


async def test_a_sync_that_is_waited_for_answers_with_what_was_proven(served: Served) -> None:
    answer = await served.http.post("/v1/syncs?wait=true", json={})
    assert answer.status_code == 200
    sync = answer.json()
    assert (sync["state"], sync["outcome"]) == ("finished", "committed")
    assert sync["elements_proven"] == sync["elements"] == 1_480_704
    assert sync["agreement"]["image"]["logprob_abs_diff_mean"] == 8e-7
    assert (sync["bytes"], sync["stall"], sync["seconds"]["verify"]) == (2_961_408, 0.12, 0.08)
    assert [phase["phase"] for phase in sync["phases"]] == [
        "prepare",
        "pause",
        "apply",
        "verify",
        "commit",
        "resume",
        "idle",
    ]
    assert answer.headers["location"] == f"/v1/syncs/{sync['sync']}"
    assert (await served.http.get(answer.headers["location"])).json() == sync


async def test_whoever_hears_that_a_sync_is_over_finds_its_weights_in_the_state(served: Served) -> None:
    answer = (await served.http.post("/v1/syncs", json={}, params={"wait": True})).json()
    state = (await served.http.get("/v1/state")).json()
    assert {member["version"] for member in state["cluster"]["members"]} == {answer["serving"]}


async def test_one_sync_at_a_time_and_the_refusal_names_the_other(served: Served) -> None:
    served.bridge.go.clear()
    begun = await served.http.post("/v1/syncs", json={})
    assert (begun.status_code, begun.json()["state"]) == (202, "running")
    name = begun.json()["sync"]
    while (await served.http.get(f"/v1/syncs/{name}")).json()["phase"] != "apply":
        await asyncio.sleep(0.01)
    refused = await served.http.post("/v1/syncs", json={})
    assert (refused.status_code, refused.json()["code"], refused.json()["sync"]) == (409, "sync_running", name)
    assert refused.headers["location"] == f"/v1/syncs/{name}"
    assert (await served.http.get("/v1/state")).json()["sync"] == name
    served.bridge.go.set()
    while (await served.http.get(f"/v1/syncs/{name}")).json()["state"] == "running":
        await asyncio.sleep(0.01)
    assert (await served.http.post("/v1/syncs?wait=true", json={})).status_code == 200


@pytest.mark.parametrize(("kind", "status"), [("sync_started", 503), ("sync_ended", 200)])
async def test_a_sync_that_the_ledger_took_no_event_of_is_over_and_the_next_one_begins(
    served: Served, kind: str, status: int
) -> None:
    """As a full disk has it: nothing that is written about the sync is kept."""

    def write(statement: str) -> "asyncio.Future[object]":
        writer = served.coordinator.store._ledger.writer
        return asyncio.wrap_future(writer.submit(lambda connection: connection.exec_driver_sql(statement).close()))

    full = f"NEW.kind = '{kind}' BEGIN SELECT RAISE(FAIL, 'database or disk is full'); END"
    await write(f"CREATE TRIGGER full BEFORE INSERT ON events WHEN {full}")
    key = {"Idempotency-Key": "step-12"}
    assert (await served.http.post("/v1/syncs?wait=true", json={}, headers=key)).status_code == status
    await write("DROP TRIGGER full")
    assert (await served.http.get("/v1/state")).json()["sync"] is None
    assert (await served.http.post("/v1/syncs?wait=true", json={}, headers=key)).json()["outcome"] == "committed"
    assert (await served.http.post("/v1/syncs?wait=true", json={})).json()["outcome"] == "committed"


async def test_a_key_is_one_operation_however_often_it_is_sent(served: Served) -> None:
    served.bridge.go.clear()
    key = {"Idempotency-Key": "step-12"}
    waiting = [asyncio.create_task(served.http.post("/v1/syncs?wait=true", json={}, headers=key)) for _ in range(3)]
    await asyncio.sleep(0.05)
    served.bridge.go.set()
    answers = [(await task).json() for task in waiting]
    assert len({answer["sync"] for answer in answers}) == 1
    assert len(served.bridge.requests) == 1
    again = await served.http.post("/v1/syncs", json={}, headers=key)
    assert (again.status_code, again.json()["sync"]) == (200, answers[0]["sync"])
    other = await served.http.post("/v1/syncs", json={"mode": "drain"}, headers=key)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_mismatch")


async def test_a_key_outlives_the_coordinator(serve: Serve) -> None:
    key = {"Idempotency-Key": "step-12"}
    async with serve() as served:
        first = (await served.http.post("/v1/syncs?wait=true", json={}, headers=key)).json()
    async with serve() as served:
        again = (await served.http.post("/v1/syncs?wait=true", json={}, headers=key)).json()
        assert again["sync"] == first["sync"]
        assert (again["outcome"], again["elements_proven"]) == ("committed", 1_480_704)
        assert [phase["phase"] for phase in again["phases"]] == [phase["phase"] for phase in first["phases"]]
        assert again["phase"] == first["phase"] == "idle"
        assert served.bridge.requests == []
        (listed,) = (await served.http.get("/v1/syncs")).json()
        assert listed["sync"] == first["sync"]


async def test_a_key_of_another_run_of_the_cluster_is_another_sync(serve: Serve) -> None:
    key = {"Idempotency-Key": "step-12"}
    async with serve(FakeBridge(run="first")) as served:
        first = (await served.http.post("/v1/syncs?wait=true", json={}, headers=key)).json()
    async with serve(FakeBridge(run="second")) as served:
        second = (await served.http.post("/v1/syncs?wait=true", json={}, headers=key)).json()
        assert second["sync"] != first["sync"]
        assert [(request.sync, request.key) for request in served.bridge.requests] == [(second["sync"], "step-12")]
    async with serve(FakeBridge(run="first")) as served:
        assert (await served.http.post("/v1/syncs", json={}, headers=key)).json()["sync"] == first["sync"]
        assert served.bridge.requests == []


async def test_a_cluster_that_hosts_another_run_by_now_takes_the_key_again(served: Served) -> None:
    key = {"Idempotency-Key": "step-12"}
    first = (await served.http.post("/v1/syncs?wait=true", json={}, headers=key)).json()
    journal, served.bridge.run, served.bridge.journal = served.bridge.journal, "another", None
    assert (await served.http.post("/v1/syncs?wait=true", json={}, headers=key)).json()["sync"] != first["sync"]
    served.bridge.journal = journal


async def test_a_key_is_known_while_the_cluster_is_away(serve: Serve) -> None:
    key = {"Idempotency-Key": "step-12"}
    async with serve() as served:
        first = (await served.http.post("/v1/syncs?wait=true", json={}, headers=key)).json()
        served.bridge.down = "the head of Ray is gone"
        assert (await served.http.post("/v1/syncs", json={}, headers=key)).json()["sync"] == first["sync"]
    down = FakeBridge(down="connecting")
    for run, status in (("digits", 200), ("another", 503)):
        cluster = {"address": "127.0.0.1:6379", "dashboard": "", "run": run, "model": "model", "ledger": ""}
        async with serve(down, cluster=cluster) as served:
            assert (await served.http.post("/v1/syncs", json={}, headers=key)).status_code == status


async def test_a_sync_that_was_rolled_back_says_so(served: Served) -> None:
    served.bridge.sync_error = SyncRolledBackError("3 elements of mixer.D differ; replicas serve what they served")
    answer = await served.http.post("/v1/syncs?wait=true", json={})
    assert (answer.status_code, answer.json()["code"]) == (409, "sync_rolled_back")
    assert "mixer.D" in answer.json()["detail"]
    (listed,) = (await served.http.get("/v1/syncs")).json()
    assert (listed["outcome"], listed["state"]) == ("failed", "finished")
    served.bridge.sync_error = None
    assert (await served.http.post("/v1/syncs?wait=true", json={})).status_code == 200


async def test_weights_that_are_not_finite_have_a_code_of_their_own(served: Served) -> None:
    served.bridge.sync_error = NonFiniteWeightsError("layers.3.A_log: 17 NaN of 64 elements")
    answer = await served.http.post("/v1/syncs?wait=true", json={})
    assert (answer.status_code, answer.json()["code"]) == (409, "non_finite_weights")
    assert "layers.3.A_log: 17 NaN of 64 elements" in answer.json()["detail"]


async def test_what_is_not_finite_and_was_allowed_is_in_the_proof(serve: Serve) -> None:
    async with serve() as served:
        assert served.bridge.requests == []
        served.bridge.nonfinite = ("layers.3.A_log: 17 NaN of 64 elements",)
        body = {"allow_nonfinite": True, "source": "published", "version": "digits/1/7/abc"}
        sync = (await served.http.post("/v1/syncs?wait=true", json=body)).json()
        assert served.bridge.requests[0].allow_nonfinite
        assert (sync["allow_nonfinite"], sync["nonfinite"]) == (True, ["layers.3.A_log: 17 NaN of 64 elements"])
        events = (await served.http.get("/v1/events/page")).json()
        assert [one["data"]["nonfinite"] for one in events if one["kind"] == "sync_ended"] == [sync["nonfinite"]]
    async with serve() as served:  # as the ledger has it
        (kept,) = (await served.http.get("/v1/syncs")).json()
        assert (kept["nonfinite"], kept["source"]) == (sync["nonfinite"], "published")


async def test_a_figure_that_is_not_a_number_is_null_in_a_sync_and_a_check(serve: Serve) -> None:
    bridge = FakeBridge(figures=LOST)
    async with serve(bridge) as served:
        begun = (await served.http.post("/v1/syncs?wait=true", json={})).json()
        check = (await served.http.post("/v1/checks", json={})).json()
        assert check["severity"] == "pause"
        assert "overall: logprob_abs_diff_mean is not a number" in check["reason"]
        for figures in (begun["agreement"], check["figures"]):
            assert figures["overall"]["logprob_abs_diff_mean"] is figures["image"]["logprob_abs_diff_mean"] is None
    async with serve() as served:
        assert (await served.http.get(f"/v1/syncs/{begun['sync']}")).json()["agreement"] == begun["agreement"]


async def test_a_check_of_published_weights_says_what_was_proven(served: Served) -> None:
    served.bridge.published = True
    check = (await served.http.post("/v1/checks", json={})).json()
    assert (check["severity"], check["cause"], check["figures"], check["compared"]) == ("unjudged", None, {}, False)
    assert (
        check["reason"]
        == "nothing was compared: the engines hold, byte for byte, the weights that were brought to them"
    )
    assert check["sentence"] == THEIRS
    served.bridge.cause = Cause.CORRUPT_WEIGHTS
    broken = (await served.http.post("/v1/checks", json={})).json()
    assert (broken["severity"], broken["cause"]) == ("pause", "corrupt_weights")


async def test_a_bridge_that_died_over_a_sync_is_asked_again_under_the_same_key(served: Served) -> None:
    key = {"Idempotency-Key": "step-3"}
    bridge = served.bridge
    bridge.sync_error, journal = RayUnavailableError("the bridge to Ray ended"), bridge.journal
    bridge.journal = None  # it ended before it wrote a word
    lost = await served.http.post("/v1/syncs?wait=true", json={}, headers=key)
    assert (lost.status_code, lost.json()["code"]) == (503, "ray_unavailable")
    bridge.sync_error, bridge.journal = None, journal
    again = (await served.http.post("/v1/syncs?wait=true", json={}, headers=key)).json()
    assert (again["outcome"], again["key"]) == ("committed", "step-3")
    assert (await served.http.post("/v1/syncs?wait=true", json={}, headers=key)).json()["sync"] == again["sync"]
    assert bridge.calls.count("sync") == 2


async def test_what_the_successor_made_of_it_counts_where_the_bridge_had_begun(served: Served) -> None:
    key = {"Idempotency-Key": "step-3"}
    served.bridge.sync_error = RayUnavailableError("the bridge to Ray ended")
    assert (await served.http.post("/v1/syncs?wait=true", json={}, headers=key)).status_code == 503
    served.bridge.sync_error = None
    again = (await served.http.post("/v1/syncs?wait=true", json={}, headers=key)).json()
    assert (again["state"], again["outcome"]) == ("finished", "rolled_back")
    assert served.bridge.calls.count("sync") == 1


async def test_a_sync_that_the_bridge_died_over_is_listed_as_it_is_shown(served: Served) -> None:
    served.bridge.sync_error = RayUnavailableError("the bridge to Ray ended")
    await served.http.post("/v1/syncs?wait=true", json={})
    (listed,) = (await served.http.get("/v1/syncs")).json()
    shown = (await served.http.get(f"/v1/syncs/{listed['sync']}")).json()
    assert listed["outcome"] == shown["outcome"] == "rolled_back", "as its successor left it in the ledger"


async def test_successors_come_without_new_weights(served: Served) -> None:
    before = (await served.http.post("/v1/syncs?wait=true", json={})).json()
    shown = "omni_rl_sync_bytes 2.961408e+06"
    assert shown in (await served.http.get("/metrics")).text
    answer = (await served.http.post("/v1/syncs?wait=true", json={"source": "served"})).json()
    assert (answer["source"], answer["version"]) == ("served", before["version"])
    assert shown in (await served.http.get("/metrics")).text


async def test_weights_come_only_from_where_the_operator_said(serve: Serve, tmp_path: Any) -> None:
    inside, outside = tmp_path / "weights" / "step-3", tmp_path / "elsewhere"
    async with serve(weight_roots=(tmp_path / "weights",)) as served:
        for path in (outside, f"{inside}/../../elsewhere"):
            answer = await served.http.post("/v1/syncs", json={"source": "directory", "path": str(path)})
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
        answer = await served.http.post("/v1/syncs?wait=true", json={"source": "directory", "path": str(inside)})
        assert answer.status_code == 200
        assert served.bridge.requests[0].path == str(inside)


@pytest.mark.parametrize(
    "body",
    [
        {"source": "published"},
        {"source": "trainer", "path": "/etc"},
        {"source": "http://example.com/weights"},
        {"surprise": 1},
    ],
)
async def test_sync_bodies_that_are_refused(served: Served, body: dict[str, Any]) -> None:
    answer = await served.http.post("/v1/syncs", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


async def test_a_check_is_judged_and_says_the_cause(served: Served) -> None:
    calm = (await served.http.post("/v1/checks", json={})).json()
    assert (calm["severity"], calm["cause"]) == ("ok", None)
    served.bridge.figures, served.bridge.cause = PART, Cause.MEDIA_MISMATCH
    found = (await served.http.post("/v1/checks", json={})).json()
    assert (found["severity"], found["cause"]) == ("pause", "media_mismatch")
    assert found["legs"]["train_vs_prefill"]["image"]["gen_kl_error"] == 5.2


async def test_checks_are_kept_with_what_they_found(serve: Serve) -> None:
    about = {"run": "digits", "attempt": 1, "step": 12, "localise": True}
    async with serve() as served:
        probe = (await served.http.post("/v1/checks", json={"localise": True, "legs": False})).json()
        served.bridge.cause = Cause.KERNEL
        await served.http.post("/v1/runs", json={**RUN, "gated": True})
        step = (await served.http.post("/v1/checks", json=about)).json()
    async with serve() as served:
        assert (await served.http.get(f"/v1/checks/{step['check']}")).json() == step
        listed = (await served.http.get("/v1/checks")).json()
        assert [one["check"] for one in listed] == [step["check"], probe["check"]]
        assert (listed[0]["step"], listed[1]["step"]) == (12, None)
        (found,) = listed[0]["evidence"]
        assert list(found["modules"]) == list(MODULES)
        assert found["modules"]["layers.1.mixer"] == [0.5, 1e-5]
        assert found["modules"]["logits"][0] is None
        assert listed[0]["legs"] == {}
        assert step["answers"][1]["legs"]["batch_vs_alone"][-2:] == [pytest.approx(6e-7), None]
        for query in ("run=digits&step=12", "run=digits&attempt=1"):
            (only,) = (await served.http.get(f"/v1/checks?{query}")).json()
            assert only["check"] == step["check"]
        assert (await served.http.get("/v1/checks?run=digits&step=13")).json() == []
        missing = await served.http.get("/v1/checks/99")
        assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
        events = (await served.http.get("/v1/events/page", params={"after": 0})).json()
        told = [(event["run"], event["data"]["check"]) for event in events if event["kind"] == "check"]
        assert told == [(None, probe["check"]), ("digits", step["check"])]


async def test_a_person_holds_the_gate_over_a_restart(serve: Serve) -> None:
    bridge = FakeBridge()
    async with serve(bridge) as served:
        gate = (await served.http.post("/v1/pause", json={"reason": "maintenance"})).json()
        assert (gate["gate"], gate["confirmed"], bridge.open_gate) == ("closed", True, False)
        assert gate["holds"][0]["reason"] == "maintenance (by local)"
    bridge.open_gate = True  # a cluster that came up anew knows of no hold
    async with serve(bridge) as served:
        assert (await served.http.get("/v1/state")).json()["gate"]["gate"] == "closed"
        async with asyncio.timeout(10):
            while bridge.open_gate:
                await asyncio.sleep(0.05)
        gate = (await served.http.post("/v1/resume")).json()
        assert (gate["gate"], gate["holds"], bridge.open_gate) == ("open", [], True)
    async with serve(bridge) as served:
        assert (await served.http.get("/v1/state")).json()["gate"]["gate"] == "open"


async def test_a_person_holds_the_gate_over_a_restart_after_a_run_was_resumed_by_its_name(serve: Serve) -> None:
    async with serve() as served:
        (await served.http.post("/v1/runs", json=RUN)).raise_for_status()
        await served.http.post("/v1/pause", json={"reason": "maintenance"})
        gate = (await served.http.post("/v1/resume", json={"run": RUN["run"]})).json()
        assert [hold["holder"] for hold in gate["holds"]] == ["person"]
    async with serve() as served:
        gate = (await served.http.get("/v1/state")).json()["gate"]
        assert [hold["holder"] for hold in gate["holds"]] == ["person"]


async def test_jobs(served: Served) -> None:
    body = {"kind": "grpo", "parameters": {"run": "digits", "steps": 50, "group": 4}}
    key = {"Idempotency-Key": "once"}
    made = await served.http.post("/v1/jobs", json=body, headers=key)
    assert made.status_code == 201
    job = made.json()
    assert (job["status"], job["parameters"]["group"]) == ("running", 4)
    assert job["job"] == "grpo-200651a8b2d5", "a coordinator of another version finds it by its key, too"
    assert (await served.http.post("/v1/jobs", json=body, headers=key)).json()["job"] == job["job"]
    other = {"kind": "grpo", "parameters": {"run": "digits", "steps": 51}}
    refused = await served.http.post("/v1/jobs", json=other, headers=key)
    assert (refused.status_code, refused.json()["code"]) == (409, "idempotency_mismatch")
    path = made.headers["location"]
    assert (await served.http.get(path)).json()["job"] == job["job"]
    assert [found["job"] for found in (await served.http.get("/v1/jobs")).json()] == [job["job"]]
    logs = await served.http.get(f"{path}/logs")
    assert logs.headers["content-type"].startswith("text/plain")
    assert "step 1 of 50" in logs.text
    assert (await served.http.delete(path)).json()["status"] == "stopped"
    assert (await served.http.get("/v1/jobs/nothing")).status_code == 404
    assert (await served.http.delete("/v1/jobs/nothing")).status_code == 404


async def test_a_job_that_could_not_begin_is_refused_at_once(served: Served) -> None:
    async def submitted(**parameters: object) -> tuple[int, str]:
        body = {"kind": "grpo", "parameters": {"run": "digits", **parameters}}
        answer = await served.http.post("/v1/jobs", json=body)
        return answer.status_code, answer.json().get("detail", "")

    code, says = await submitted(task="chess")
    assert (code, "no task 'chess'" in says, "digits" in says) == (422, True, True)
    assert (await submitted(resume=True))[0] == 404
    assert (await submitted())[0] == 201
    code, says = await submitted()
    assert (code, "trains run digits now" in says) == (409, True)
    for job in (await served.http.get("/v1/jobs")).json():
        await served.http.delete(f"/v1/jobs/{job['job']}")
    (await served.http.post("/v1/runs", json=RUN)).raise_for_status()
    code, says = await submitted()
    assert (code, "choose another name, or resume it" in says) == (409, True)
    assert (await submitted(resume=True))[0] == 201


async def test_one_job_at_a_time_trains_a_run_over_a_restart_too(serve: Serve) -> None:
    bridge = FakeBridge()
    body = {"kind": "grpo", "parameters": {"run": RUN["run"]}}
    again = {"kind": "grpo", "parameters": {"run": RUN["run"], "resume": True}}
    async with serve(bridge) as served:
        job = (await served.http.post("/v1/jobs", json=body)).json()["job"]
        (await served.http.post("/v1/runs", json=RUN)).raise_for_status()
    async with serve(bridge) as served:
        refused = await served.http.post("/v1/jobs", json=again)
        assert (refused.status_code, f"job {job} trains run" in refused.json()["detail"]) == (409, True)
        # Nobody asked for the job since it ended.
        bridge.submitted[job] = replace(bridge.submitted[job], status="succeeded")
        assert (await served.http.post("/v1/jobs", json=again)).status_code == 201


async def test_of_two_jobs_for_a_run_that_are_submitted_at_once_one_is_refused(served: Served) -> None:
    body = {"kind": "grpo", "parameters": {"run": "digits"}}
    answers = await asyncio.gather(*(served.http.post("/v1/jobs", json=body) for _ in range(2)))
    assert sorted(answer.status_code for answer in answers) == [201, 409]


async def test_a_job_that_ended_is_answered_for_without_ray(served: Served) -> None:
    names = []
    for number in range(3):
        body = {"kind": "grpo", "parameters": {"run": f"digits-{number}"}}
        names.append((await served.http.post("/v1/jobs", json=body)).json()["job"])
    assert len((await served.http.get("/v1/jobs")).json()) == 3
    for name in names[:2]:
        await served.http.delete(f"/v1/jobs/{name}")
    asked = served.bridge.calls
    asked.clear()
    assert (await served.http.get(f"/v1/jobs/{names[0]}")).json()["status"] == "stopped"
    assert asked == []
    listed = (await served.http.get("/v1/jobs", params={"limit": 2})).json()
    assert [found["job"] for found in listed] == [names[2], names[1]]
    assert asked == ["job"]
    served.bridge.down = "the head of Ray at 127.0.0.1:6379 is gone"
    assert (await served.http.get(f"/v1/jobs/{names[1]}")).status_code == 200
    assert (await served.http.get(f"/v1/jobs/{names[2]}")).status_code == 503


async def test_jobs_of_before_a_restart_and_of_a_ray_that_is_gone(serve: Serve) -> None:
    bridge = FakeBridge()
    async with serve(bridge) as served:
        job = (await served.http.post("/v1/jobs", json={"kind": "ppo", "parameters": {"run": "digits"}})).json()["job"]
    async with serve(bridge) as served:
        assert [found["job"] for found in (await served.http.get("/v1/jobs")).json()] == [job]
        bridge.submitted.clear()
        assert (await served.http.get("/v1/jobs")).json() == []


async def test_jobs_in_memory_are_bounded(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "KEPT", 2)
    names = []
    for number in range(4):
        body = {"kind": "grpo", "parameters": {"run": f"digits-{number}"}}
        names.append((await served.http.post("/v1/jobs", json=body)).json()["job"])
    assert [found["job"] for found in (await served.http.get("/v1/jobs")).json()] == [names[3], names[2]]
    assert (await served.http.get(f"/v1/jobs/{names[0]}")).json()["job"] == names[0]


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "shell", "parameters": {"run": "digits"}},
        {"kind": "grpo", "parameters": {"run": "digits", "entrypoint": "rm -rf /"}},
        {"kind": "grpo", "parameters": {"run": "digits"}, "runtime_env": {"pip": ["evil"]}},
        {"kind": "ppo", "parameters": {"run": "digits", "reward": "os.system"}},
    ],
)
async def test_a_job_is_parameters_and_never_a_command(served: Served, body: dict[str, Any]) -> None:
    answer = await served.http.post("/v1/jobs", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert served.bridge.calls == []


async def test_without_ray_the_api_answers_and_says_what_is_missing(serve: Serve) -> None:
    async with serve(FakeBridge(down="the head of Ray at 127.0.0.1:6379 is gone")) as served:
        for method, path, body in (
            ("POST", "/v1/syncs", {}),
            ("POST", "/v1/checks", {}),
            ("GET", "/v1/jobs", None),
            ("GET", "/v1/jobs/grpo-1/logs", None),
            ("DELETE", "/v1/jobs/grpo-1", None),
            ("POST", "/v1/jobs", {"kind": "grpo", "parameters": {"run": "digits"}}),
        ):
            answer = await served.http.request(method, path, json=body)
            assert (answer.status_code, answer.json()["code"]) == (503, "ray_unavailable"), path
            assert "127.0.0.1:6379 is gone" in answer.json()["detail"]
        state = (await served.http.get("/v1/state")).json()
        assert (state["cluster"]["connected"], state["cluster"]["reason"]) == (False, served.bridge.down)
        ready = await served.http.get("/readyz")
        assert (ready.status_code, ready.json()["ready"]) == (503, False)
        assert (await served.http.get("/healthz")).status_code == 200
        assert (await served.http.get("/v1/syncs")).json() == []


async def test_a_cluster_that_goes_and_comes_back_is_told_of_once_each(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "WATCH_SECONDS", 0.02)
    gone = "the head of Ray is gone"
    async with serve() as served:
        for down in (None, gone, None):
            served.bridge.down = down
            async with asyncio.timeout(10):
                while (await served.http.get("/v1/state")).json()["cluster"]["connected"] is (down is not None):
                    await asyncio.sleep(0.01)
        events = (await served.http.get("/v1/events/page")).json()
    told = [(event["data"]["connected"], event["data"]["reason"]) for event in events if event["kind"] == "cluster"]
    assert told == [(True, ""), (False, gone), (True, "")]


class Stumbling(FakeBridge):
    """Cannot be looked at while it `stumbles`."""

    stumbles = 0

    async def state(self) -> ClusterState:
        if self.stumbles > 0:
            self.stumbles -= 1
            raise BridgeProtocolError("no ClusterState")
        return await super().state()


async def test_the_cluster_is_looked_at_again_after_a_look_that_failed(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "WATCH_SECONDS", 0.01)
    bridge = Stumbling()
    async with serve(bridge) as served:
        bridge.stumbles = 2
        bridge.version = "digits/1/7/0badf00d"
        async with asyncio.timeout(10):
            while (await served.http.get("/v1/state")).json()["cluster"]["members"][0]["version"] != bridge.version:
                await asyncio.sleep(0.01)


class Broken(FakeBridge):
    """Its syncs end with an error that nobody foresaw, once."""

    broken = True

    async def sync(self, request: SyncRequest, observe: Observer) -> SyncResult:
        if self.broken:
            self.broken = False
            raise KeyError("rollout-0")
        return await super().sync(request, observe)


async def test_a_sync_that_ends_unexpectedly_keeps_no_other_from_beginning(serve: Serve) -> None:
    async with serve(Broken()) as served:
        assert (await served.http.post("/v1/syncs?wait=true", json={})).status_code == 500
        (failed,) = (await served.http.get("/v1/syncs")).json()
        assert (failed["state"], failed["outcome"]) == ("finished", "failed")
        assert "KeyError('rollout-0')" in failed["reason"]
        answer = await served.http.post("/v1/syncs?wait=true", json={})
        assert (answer.status_code, answer.json()["outcome"]) == (200, "committed")


async def test_ready_when_the_actors_answer(served: Served) -> None:
    assert (await served.http.get("/readyz")).json() == {"ready": True, "reason": ""}
    members = (await served.http.get("/v1/state")).json()["cluster"]["members"]
    assert [(member["name"], member["role"]) for member in members] == [
        ("rollout-0", "rollout"),
        ("trainer", "trainer"),
    ]
