"""Jobs through the API: what may be asked for, one at a time for a run, and which are known later."""

import asyncio
from typing import Any

import pytest
from omni_rl_services.coordinator import jobs

from tests.services.conftest import Serve, Served
from tests.services.fake_bridge import FakeBridge
from tests.services.posted import RUN

pytestmark = pytest.mark.anyio


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
        bridge.submitted[job] = bridge.submitted[job].model_copy(update={"status": "succeeded"})
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
