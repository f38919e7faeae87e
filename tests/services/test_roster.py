"""More runs than there is room for in memory: none is lost, and none is judged by two."""

import pytest
from omni_rl_services.coordinator import roster

from omni_rl.consistency.actions import Cause
from tests.services.conftest import Serve, Served
from tests.services.fake_bridge import FakeBridge
from tests.services.posted import CALM, DRIFTED, GATED, RUN, post, rest, seal

pytestmark = pytest.mark.anyio
NAMES = [f"r{number}" for number in range(9)]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "KEPT", 4)
    monkeypatch.setattr(roster, "NEWEST", 2)


async def made(served: Served) -> None:
    for name in NAMES:
        assert (await served.http.post("/v1/runs", json=RUN | {"run": name})).status_code == 201


def in_memory(served: Served) -> list[str]:
    return [run.name for run in served.coordinator._runs]


async def test_runs_that_are_at_rest_leave_and_come_back_as_they_were(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    await post(served, CALM, step=3)
    await seal(served, step=3)
    await made(served)
    assert in_memory(served) == NAMES[-4:]
    run = (await served.http.get("/v1/runs/digits")).json()
    assert (run["attempt"], run["step"], run["config"]["framework"]) == (1, 3, "verl")
    assert len(in_memory(served)) == 4
    assert (await served.http.get("/v1/runs/nobody")).status_code == 404
    assert (await served.http.post("/v1/runs", json=RUN | {"run": "r0"})).status_code == 200


async def test_lists_are_whole_and_the_newest_first(served: Served) -> None:
    await made(served)
    await served.http.get("/v1/runs/r1")
    for limit in (1, 2, 5, 100):
        runs = (await served.http.get("/v1/runs", params={"limit": limit})).json()
        assert [run["run"] for run in runs] == NAMES[::-1][:limit]
    assert [run["run"] for run in (await served.http.get("/v1/state")).json()["runs"]] == NAMES[::-1][:2]


async def test_a_run_where_something_is_under_way_stays(served: Served) -> None:
    served.bridge.cause = Cause.MEDIA_MISMATCH
    await served.http.post("/v1/runs", json=GATED)
    await post(served, DRIFTED)
    await seal(served)
    assert (await rest(served))["drift"]["gate"] == "halted"
    await made(served)
    assert in_memory(served) == ["digits", *NAMES[-3:]]
    assert len((await served.http.get("/v1/state")).json()["alarms"]) == 1
    await served.http.post("/v1/resume")
    await served.http.post("/v1/runs", json=RUN | {"run": "one-more"})
    assert "digits" not in in_memory(served)
    assert (await served.http.get("/v1/runs/digits")).json()["drift"]["gate"] == "open"


async def test_a_restart_takes_up_what_is_under_way_whatever_its_age(serve: Serve) -> None:
    bridge = FakeBridge(cause=Cause.MEDIA_MISMATCH)
    async with serve(bridge) as served:
        await served.http.post("/v1/runs", json=GATED)
        await post(served, DRIFTED)
        await seal(served)
        await rest(served)
        await made(served)
    async with serve(bridge) as served:
        assert in_memory(served) == ["digits", *NAMES[-3:]]
        assert (await served.http.get("/v1/state")).json()["gate"]["gate"] == "closed"
