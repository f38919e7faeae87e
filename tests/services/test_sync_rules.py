"""Syncs and jobs by themselves: what is remembered, told of and refused."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omni_rl_services.coordinator import syncs
from omni_rl_services.coordinator.syncs import _wrong

from omni_rl.api.jobs import JobAnswer
from omni_rl.errors import RayUnavailableError, ReplicaDeadError
from omni_rl.sync.result import SyncResult
from tests.services.conftest import Serve, Served

pytestmark = pytest.mark.anyio
RESULT = SyncResult("s", "committed", "v", "v", elements=10, elements_proven=10)


@pytest.mark.parametrize(
    ("result", "what", "severity"),
    [
        (RESULT, None, 0),
        (replace(RESULT, elements_proven=11), None, 0),
        (replace(RESULT, elements=0, elements_proven=0), None, 0),
        (replace(RESULT, elements_proven=9), "A sync was committed with 1 of 10 storage elements not proven.", 3),
        (
            replace(RESULT, elements=1, elements_proven=0),
            "A sync was committed with 1 of 1 storage element not proven.",
            3,
        ),
        (replace(RESULT, outcome="rolled_back", reason="it is gone."), "A sync of weights failed: it is gone.", 2),
        (
            replace(RESULT, outcome="rolled_back", reason="it is gone", elements_proven=0),
            "A sync of weights failed: it is gone.",
            2,
        ),
    ],
)
def test_what_a_sync_shows_of_an_incident(result: SyncResult, what: str | None, severity: int) -> None:
    found = _wrong(result)
    assert (None if found is None else (found.headline, found.severity, found.kind)) == (
        None if what is None else (what, severity, "sync")
    )


async def sync(served: Served, wait: bool = True, **body: Any) -> dict[str, Any]:
    found: dict[str, Any] = (await served.http.post("/v1/syncs", json=body, params={"wait": wait})).json()
    return found


async def test_syncs_are_listed_the_newest_first_without_their_phases(served: Served) -> None:
    names = [(await sync(served))["sync"] for _ in range(3)]
    for limit in (1, 2, 3, 100):
        listed = (await served.http.get("/v1/syncs", params={"limit": limit})).json()
        assert [one["sync"] for one in listed] == names[::-1][:limit]
        assert all(one["phases"] == [] for one in listed)
    assert len((await served.http.get(f"/v1/syncs/{names[0]}")).json()["phases"]) == 7


async def test_a_sync_that_left_memory_is_in_the_ledger(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syncs, "REMEMBERED", 2)
    key = {"Idempotency-Key": "first"}
    first = (await served.http.post("/v1/syncs?wait=true", json={}, headers=key)).json()
    names = [first["sync"], *[(await sync(served))["sync"] for _ in range(2)]]
    assert list(served.coordinator.syncs._begun) == names[1:]
    again = (await served.http.get(f"/v1/syncs/{names[0]}")).json()
    assert (again["sync"], again["outcome"], again["key"]) == (names[0], "committed", "first")
    assert [one["sync"] for one in (await served.http.get("/v1/syncs")).json()] == names[::-1]
    by_key = await served.http.post("/v1/syncs?wait=true", json={}, headers=key)
    assert (by_key.status_code, by_key.json()["sync"]) == (200, names[0])
    assert (await served.http.get("/v1/syncs/nothing")).status_code == 404


async def test_a_sync_is_told_of_from_its_begin_to_its_end(served: Served) -> None:
    done = await sync(served)
    served.bridge.sync_error = ReplicaDeadError("rollout-0 is gone")
    await sync(served)
    events = [one for one in (await served.http.get("/v1/events/page")).json() if one["kind"].startswith("sync_")]
    ours = [one["data"] for one in events if one["kind"] in ("sync_started", "sync_ended")]
    begun, ended, _, failed = ours
    assert begun == {"sync": done["sync"], "source": "trainer"}
    assert ended == {
        "sync": done["sync"],
        "outcome": "committed",
        "version": done["version"],
        "serving": done["serving"],
        "stall": 0.12,
        "reason": "",
        "nonfinite": [],
        "replaced": {},
        "out": {},
    }
    assert (failed["outcome"], failed["code"], failed["reason"]) == ("failed", "replica_dead", "rollout-0 is gone")
    (listed, _) = (await served.http.get("/v1/syncs")).json()
    assert (listed["outcome"], listed["reason"], listed["state"]) == ("failed", "rollout-0 is gone", "finished")
    metrics = (await served.http.get("/metrics")).text
    assert 'omni_rl_syncs_total{outcome="failed"} 1.0' in metrics
    assert 'omni_rl_syncs_total{outcome="committed"} 1.0' in metrics


async def test_what_is_asked_for_reaches_the_cluster_as_it_was_asked(served: Served) -> None:
    await sync(served)
    body = {"source": "published", "version": "digits/1/7/abc", "mode": "drain", "probe": False}
    key = {"Idempotency-Key": "k"}
    await served.http.post("/v1/syncs?wait=true", json={**body, "allow_nonfinite": True}, headers=key)
    first, second = served.bridge.requests
    assert (first.source, first.version, first.path, first.key, first.mode) == (
        "trainer",
        None,
        None,
        None,
        "recompute",
    )
    assert (first.probe, first.allow_nonfinite, first.heal) == (True, False, False)
    assert (second.source, second.version, second.key, second.mode) == ("published", "digits/1/7/abc", "k", "drain")
    assert (second.probe, second.allow_nonfinite, second.heal) == (False, True, False)
    assert first.sync != second.sync
    assert len(first.sync) == 12


@pytest.mark.parametrize(
    ("roots", "path", "says"),
    [
        ((), "weights", "there is none"),
        (("weights",), "weights", None),
        (("weights",), "weights/a/b", None),
        (("weights",), "weights2", "outside"),
        (("weights", "more"), "more/a", None),
        (("weights",), "weights/../other", "outside"),
        (("link",), "real/a", None),
        (("real",), "link/a", None),
    ],
)
async def test_a_directory_is_taken_from_below_a_root_alone(
    serve: Serve, tmp_path: Path, roots: Sequence[str], path: str, says: str | None
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    async with serve(weight_roots=tuple(tmp_path / root for root in roots)) as served:
        answer = await served.http.post(
            "/v1/syncs?wait=true", json={"source": "directory", "path": str(tmp_path / path)}
        )
        assert answer.status_code == (200 if says is None else 422), answer.text
        if says is None:
            assert served.bridge.requests[0].path == str((tmp_path / path).resolve())
        elif says == "there is none":
            assert says in answer.json()["detail"]


async def test_who_does_not_wait_hears_of_a_sync_under_way_and_who_leaves_ends_none(served: Served) -> None:
    served.bridge.go.clear()
    running = await served.http.post("/v1/syncs", json={})
    assert (running.status_code, running.json()["state"], running.json()["finished"]) == (202, "running", None)
    name = running.json()["sync"]
    leaving = asyncio.create_task(served.coordinator.syncs.wait(name))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await served.coordinator.syncs.over("nobody's")
    served.bridge.go.set()
    async with asyncio.timeout(10):
        await served.coordinator.syncs.over(name)
    done = (await served.http.get(f"/v1/syncs/{name}")).json()
    assert (done["state"], done["outcome"], done["phase"]) == ("finished", "committed", "idle")
    assert done["started"] <= done["phases"][0]["at"] <= done["finished"]
    assert served.coordinator.syncs.running is None


async def test_of_a_sync_that_is_over_while_its_end_cannot_be_told_the_result_stands(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The result stands whether the error was foreseen or not."""
    publish = served.coordinator.events.publish
    for error in (RayUnavailableError("nobody hears it"), KeyError("nobody foresaw it")):

        async def failing(kind: str, run: str | None = None, /, error: Exception = error, **data: Any) -> None:
            if kind == "sync_ended":
                raise error
            await publish(kind, run, **data)

        monkeypatch.setattr(served.coordinator.events, "publish", failing)
        done = await sync(served)
        assert (done["outcome"], done["state"]) == ("committed", "finished")
    assert "is over, and that was not told: nobody hears it" in caplog.text
    assert "ended unexpectedly" in caplog.text


def job(name: str, submitted: float | None, status: Any = "running") -> JobAnswer:
    return JobAnswer(job=name, kind="grpo", status=status, submitted=submitted, parameters={"run": name})


async def test_the_newest_256_jobs_are_remembered_and_the_newest_come_first(served: Served) -> None:
    bridge = served.bridge
    for number in range(258):
        bridge.submitted[f"j{number}"] = job(f"j{number}", float(number), "succeeded")
    bridge.submitted["odd"] = job("odd", None, "succeeded")
    listed = (await served.http.get("/v1/jobs?limit=10000")).json()
    assert [one["job"] for one in listed] == [f"j{number}" for number in range(257, 1, -1)]
    assert [one["job"] for one in (await served.http.get("/v1/jobs?limit=2")).json()] == ["j257", "j256"]
    assert bridge.calls == ["jobs"], "all of them once"
    assert (await served.http.get("/v1/jobs/j0")).json()["status"] == "succeeded"
    assert bridge.calls == ["jobs", "job"]


async def test_a_job_is_told_of_when_it_is_submitted_and_stopped(served: Served) -> None:
    body = {"kind": "ppo", "parameters": {"run": "digits"}}
    made = (await served.http.post("/v1/jobs", json=body)).json()
    await served.http.delete(f"/v1/jobs/{made['job']}")
    assert made["job"].startswith("ppo-")
    assert len(made["job"]) == 4 + 12
    events = [one for one in (await served.http.get("/v1/events/page")).json() if one["kind"] == "job"]
    assert [(one["run"], one["data"]) for one in events] == [
        ("digits", {"job": made["job"], "status": "running", "what": "submitted"}),
        ("digits", {"job": made["job"], "status": "stopped", "what": "stopped"}),
    ]


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ({}, True),
        ({"source": "published", "version": "digits/1/7/abc"}, True),
        ({"source": "served"}, False),
    ],
)
async def test_a_sync_that_was_to_bring_weights_is_shown(served: Served, body: dict[str, Any], shown: bool) -> None:
    await sync(served, **body)
    assert ("omni_rl_sync_bytes 2.961408e+06" in (await served.http.get("/metrics")).text) is shown
