"""The dashboard's files as the coordinator serves them, and what it asks of the API that nobody else does."""

import gzip
import re
from urllib.parse import urljoin

import pytest

from omni_rl.kinds import KINDS, OVERALL
from omni_rl.ledger.types import IncidentEnd, NewIncident
from tests.services.conftest import Served
from tests.services.posted import CALM, RUN, post, seal

pytestmark = pytest.mark.anyio


async def test_the_page_needs_nothing_from_elsewhere(served: Served) -> None:
    page = await served.http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    addresses = [part.split('"')[0] for part in page.text.replace('href="', 'src="').split('src="')[1:]]
    assert all(address.startswith(("/dashboard/", "#")) for address in addresses)
    for address in addresses:
        if address.startswith("/"):
            assert (await served.http.get(address)).status_code == 200, address


async def test_modules_are_not_found_one_by_one(served: Served) -> None:
    """The page names every module that another one imports, so that none waits for the one that imports it."""
    page = (await served.http.get("/")).text
    preloaded = set(re.findall(r'rel="modulepreload" href="([^"]+)"', page))
    imported, to_read = set[str](), ["/dashboard/js/main.js"]
    while to_read:
        module = to_read.pop()
        source = (await served.http.get(module)).text
        found = {urljoin(module, name) for name in re.findall(r'from "([^"]+)"', source)} - imported
        imported |= found
        to_read += found
    assert preloaded == imported


async def test_files_are_packed_and_asked_for_again(served: Served) -> None:
    address = "/dashboard/js/main.js"
    packed = await served.http.get(address)
    assert packed.headers["content-encoding"] == "gzip"
    plain = await served.http.get(address, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.content == packed.content
    assert len(gzip.compress(plain.content)) < len(plain.content)
    again = await served.http.get(address, headers={"If-None-Match": packed.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", ["nothing.js", "../coordinator/app.py", "%2e%2e/coordinator/app.py", "vendor"])
async def test_only_its_own_files_are_served(served: Served, path: str) -> None:
    answer = await served.http.get(f"/dashboard/{path}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


async def test_limits_are_those_a_run_is_judged_by(served: Served) -> None:
    own = {"image": {"gen_kl_error": {"warn": 0.1, "mask": 0.2, "pause": 0.3}}}
    await served.http.post("/v1/runs", json={**RUN, "limits": own})
    limits = (await served.http.get("/v1/runs/digits/limits")).json()
    assert limits["image"]["gen_kl_error"] == own["image"]["gen_kl_error"]
    assert limits["overall"]["token_mult_prob_error"]["warn"] == 1.05


async def test_alarms_stay_with_what_was_done_about_them(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    await post(served, CALM)
    await seal(served)
    seen = NewIncident(3, "image: too far", "media_mismatch", "halted", {"media": {"equal": False}})
    await served.coordinator.store.see_incident("digits", seen)
    await served.coordinator.store.end_incidents("digits", IncidentEnd("drift", "a person came"))
    (found,) = (await served.http.get("/v1/runs/digits/alarms")).json()
    assert found["closed"] is not None
    assert found["action"] == "a person came"
    assert (found["cause"], found["evidence"]) == ("media_mismatch", {"media": {"equal": False}})
    assert (await served.http.get("/v1/runs/none/alarms")).status_code == 404


async def test_an_incident_that_is_no_alarm_takes_no_alarms_place(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    for kind in ("drift", "update", "silence"):
        await served.coordinator.store.see_incident("digits", NewIncident(2, f"A {kind}.", "unknown", kind=kind))
    for limit, told in ((1, ["A update."]), (2, ["A update.", "A drift."])):
        alarms = (await served.http.get("/v1/runs/digits/alarms", params={"limit": limit})).json()
        assert [alarm["sentence"] for alarm in alarms] == told


async def test_the_api_says_which_kinds_of_prompt_there_are(served: Served) -> None:
    """The dashboard offers what a run's answer says: its state has the run, so it asks for nothing more."""
    await served.http.post("/v1/runs", json=RUN)
    (run,) = (await served.http.get("/v1/state")).json()["runs"]
    assert run["kinds"] == list(KINDS)
    for bucket in (OVERALL, *run["kinds"]):
        timeline = await served.http.get("/v1/runs/digits/timeline", params={"kind": bucket})
        assert (timeline.status_code, timeline.json()["kind"]) == (200, bucket)
    assert (await served.http.get("/v1/runs/digits/timeline", params={"kind": "colour"})).status_code == 404


async def test_the_document_lists_the_kinds(served: Served) -> None:
    document = (await served.http.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    assert schemas["RunAnswer"]["properties"]["kinds"]["default"] == list(KINDS)
    assert ", ".join(KINDS) in schemas["RunBody"]["properties"]["kinds"]["description"]
    parameters = document["paths"]["/v1/runs/{run}/timeline"]["get"]["parameters"]
    (asked,) = (one["schema"] for one in parameters if one["name"] == "kind")
    assert asked["default"] == OVERALL
