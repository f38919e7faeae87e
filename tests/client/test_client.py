"""The clients against a live coordinator: every method, errors by their classes, and what is sent again."""

import asyncio
import inspect
import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from omni_rl import errors
from omni_rl.api.events import EventAnswer
from omni_rl.api.jobs import GrpoParameters, PpoParameters
from omni_rl.api.runs import CorrectionBody, RunBody
from omni_rl.api.syncs import CheckBody, SyncBody
from omni_rl.client import AsyncClient, Client
from omni_rl.client.calls import STREAM_PAUSE
from omni_rl.client.retries import Retries
from omni_rl.errors import ConflictError, CoordinatorUnreachableError, NotFoundError, OmniRLError, RayUnavailableError
from tests.services.fake_bridge import FakeBridge
from tests.services.live import live
from tests.services.posted import DRIFTED
from tests.services.test_media import picture

RUN = RunBody(run="digits", model="small", dtype="bfloat16", correction=CorrectionBody(method="tis"))
QUICK = Retries(attempts=3, first=0.01, longest=0.02)


@pytest.fixture(scope="module")
def bridge() -> FakeBridge:
    return FakeBridge()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, bridge: FakeBridge) -> Iterator[str]:
    with live(tmp_path_factory.mktemp("client"), bridge) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url, retries=QUICK) as found:
        yield found


def test_a_trainers_day(client: Client) -> None:
    assert client.whoami().open
    assert client.ready().ready
    assert client.create_run(RUN).run == "digits"
    assert client.put_part("digits", 1, 12, 0, DRIFTED).stored == "new"
    assert client.put_part("digits", 1, 12, 0, DRIFTED).stored == "same"
    sealed = client.seal("digits", 1, 12, parts=1, training={"reward": 0.5})
    assert sealed.verdict.severity == "pause"
    assert sealed.weights is not None
    np.testing.assert_allclose(sealed.weights[0, "b"], [2.0] * 4)
    assert client.run("digits").step == 12
    assert [run.run for run in client.runs()] == ["digits"]
    assert client.step("digits", 1, 12).training == {"reward": 0.5}
    assert client.add_training("digits", 1, 12, {"kl": 0.01}).training == {"reward": 0.5, "kl": 0.01}
    assert client.sample("digits", 1, 12, "b").record["ids"] == [0, 1, 2, 3]
    assert [line.step for line in client.steps("digits")] == [12]
    timeline = client.timeline("digits", kind="image", metrics=["gen_kl_error"])
    assert (timeline.first, set(timeline.high)) == ([12], {"gen_kl_error"})
    media = client.put_media(picture("PNG"), "image/png")
    assert client.media(media.digest) == picture("PNG")
    sync = client.sync(key="step-12")
    assert (sync.outcome, client.sync(key="step-12").sync) == ("committed", sync.sync)
    assert client.sync_named(sync.sync) == sync
    assert [found.sync for found in client.syncs()] == [sync.sync]
    probe = client.check()
    step = client.check(CheckBody(run="digits", attempt=1, step=12))
    assert (probe.severity, probe.run, step.run) == ("ok", None, "digits")
    assert client.check_numbered(step.check) == step
    assert [found.check for found in client.checks()] == [step.check, probe.check]
    assert [found.check for found in client.checks(run="digits", attempt=1, step=12)] == [step.check]
    assert (client.checks(1)[0].check, client.checks(run="digits", step=13)) == (step.check, [])
    with pytest.raises(NotFoundError, match="no check 99"):
        client.check_numbered(99)
    job = client.submit(GrpoParameters(run="digits", group=4, resume=True), key="once")
    assert client.submit(GrpoParameters(run="digits", group=4, resume=True), key="once").job == job.job
    assert client.submit(PpoParameters(run="digits-ppo")).kind == "ppo"
    assert client.job(job.job).parameters["group"] == 4
    assert "step 1 of 50" in client.logs(job.job)
    assert client.stop_job(job.job).status == "stopped"
    assert {found.kind for found in client.jobs()} == {"grpo", "ppo"}
    (incident,) = client.incidents(is_open=True, run="digits", kind="drift")
    assert client.incident(incident.incident) == incident
    assert client.acknowledge(incident.incident).acknowledged is not None
    assert [note.text for note in client.note(incident.incident, "mine").notes] == ["mine"]
    assert client.end_incident(incident.incident).ended is not None
    assert client.incidents(is_open=True) == []
    assert [run.run for run in client.runs(search="dig", needs=["ok"], sort="need")] == ["digits"]
    assert [(one.first, one.last) for one in client.attempts("digits")] == [(12, 12)]
    assert client.pause("maintenance").gate == "closed"
    assert client.resume().gate == "open"
    assert client.state().cluster.connected
    assert client.event_page(after=0)


def test_a_trainers_figure_that_is_no_number_is_kept_as_that(client: Client) -> None:
    client.create_run(RUN)
    client.put_part("digits", 1, 13, 0, DRIFTED)
    client.seal("digits", 1, 13, parts=1, training={"loss": math.nan, "reward": 0.5})
    client.add_training("digits", 1, 13, {"grad_norm": math.inf})
    assert client.step("digits", 1, 13).training == {"loss": None, "reward": 0.5, "grad_norm": None}
    assert client.steps("digits", after=12)[0].training["loss"] is None


def test_the_async_client_has_every_method_of_the_other() -> None:
    def methods(of: type) -> dict[str, inspect.Signature]:
        return {name: inspect.signature(getattr(of, name)) for name in dir(of) if not name.startswith("_")}

    ours, theirs = methods(Client), methods(AsyncClient)
    assert ours.keys() == theirs.keys()
    assert all(list(ours[name].parameters.values()) == list(theirs[name].parameters.values()) for name in ours)
    assert all(getattr(Client, name).__doc__ == getattr(AsyncClient, name).__doc__ for name in ours)


def test_a_method_shows_its_parameters_its_answer_and_what_it_does() -> None:
    shown = inspect.signature(Client("http://localhost").attempts)
    assert str(shown) == "(run: str) -> list[omni_rl.api.runs.AttemptAnswer]"
    assert inspect.signature(Client.seal).return_annotation == "Sealed"
    assert {name for name in dir(Client) if name[0] != "_" and not getattr(Client, name).__doc__} <= {"close"}


def test_the_async_client(url: str) -> None:
    async def day() -> None:
        async with AsyncClient(url, retries=QUICK) as client:
            await client.create_run(RUN)
            await client.put_part("digits", 2, 1, 0, DRIFTED)
            sealed = await client.seal("digits", 2, 1)
            assert sealed.weights is not None
            assert (await client.sync()).outcome == "committed"
            check = await client.check()
            assert await client.check_numbered(check.check) == check
            assert (await client.checks(1))[0].check == check.check
            async for event in client.events(after=0):
                if event.kind == "sync_ended":
                    break
            with pytest.raises(NotFoundError):
                await client.run("nobody")

    asyncio.run(day())


def test_errors_are_the_classes_that_were_raised(client: Client, bridge: FakeBridge) -> None:
    with pytest.raises(NotFoundError, match="nobody"):
        client.run("nobody")
    with pytest.raises(ConflictError, match="digits"):
        client.create_run(RUN.model_copy(update={"dtype": "float32"}))
    bridge.down = "the head of Ray is gone"
    try:
        with pytest.raises(RayUnavailableError, match="head of Ray is gone"):
            client.sync()
        # The cluster is looked at every two seconds.
        deadline = time.monotonic() + 20
        while client.ready().ready:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        bridge.down = None
    with pytest.raises(errors.InvalidRequestError, match="weight_roots"):
        client.sync(SyncBody(source="directory", path="/etc"))


def test_every_code_is_one_class() -> None:
    def classes(root: type[OmniRLError]) -> Iterator[type[OmniRLError]]:
        for child in root.__subclasses__():
            if child.__module__ == "omni_rl.errors":
                yield child
                yield from classes(child)

    codes = [found.code for found in classes(OmniRLError)]
    assert len(codes) == len(set(codes))


def served_by(answers: list[Callable[[httpx.Request], httpx.Response]]) -> tuple[Client, list[httpx.Request]]:
    """A client whose coordinator answers with these, in order."""
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return answers[len(seen) - 1](request)

    return Client("http://coordinator", transport=httpx.MockTransport(answer), retries=QUICK), seen


def lost(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadError("connection reset")


def away(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("connection refused")


def status(code: int, body: Any = None) -> Callable[[httpx.Request], httpx.Response]:
    return lambda request: httpx.Response(code, json=body)


READY = {"ready": True, "reason": ""}


def test_lost_answers_are_asked_for_again() -> None:
    client, seen = served_by([lost, away, status(200, READY)])
    assert client.ready().ready
    assert len(seen) == 3


def test_a_sync_whose_answer_was_lost_is_sent_again_under_the_same_key() -> None:
    client, seen = served_by([lost, status(409, {"code": "sync_rolled_back", "detail": "mixer.D"})])
    with pytest.raises(errors.SyncRolledBackError, match=r"mixer\.D"):
        client.sync()
    assert len({request.headers["idempotency-key"] for request in seen}) == 1


def test_too_much_at_once_is_waited_out() -> None:
    client, seen = served_by([status(429), status(502), status(200, READY)])
    assert client.ready().ready
    assert len(seen) == 3


def test_nobody_there_in_the_end() -> None:
    client, seen = served_by([away] * 3)
    with pytest.raises(CoordinatorUnreachableError, match=r"GET /v1/state: no answer \(connection refused\)"):
        client.state()
    assert len(seen) == 3


def test_a_stream_that_ends_at_once_is_not_asked_for_without_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    event = EventAnswer(id=7, at=1.0, kind="sync_ended", data={})
    named = f"id: 7\nevent: sync_ended\ndata: {event.model_dump_json()}\n\n".encode()
    asked, seen = served_by([lambda _: httpx.Response(200), lambda _: httpx.Response(200, content=named)])
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    assert next(asked.events(after=6)).id == 7
    assert len(seen) == 2
    assert pauses == [STREAM_PAUSE]


def test_an_answer_that_is_no_problem_document() -> None:
    client, _ = served_by([lambda request: httpx.Response(500, text="<html>proxy</html>")])
    with pytest.raises(errors.ApiError, match="GET /v1/state: status 500"):
        client.state()
    client, _ = served_by([status(418, {"code": "of_a_newer_version", "detail": "teapot"})])
    with pytest.raises(errors.ApiError, match="of_a_newer_version: teapot"):
        client.state()


def test_answers_of_a_newer_coordinator_are_read_for_what_this_version_knows() -> None:
    run = {"run": "digits", "created": 1.0, "attempt": 3, "step": None, "mood": "fair"}
    run |= {"config": {**RUN.model_dump(mode="json"), "mood": "fair"}, "drift": {"severity": "ok", "mood": "fair"}}
    client, _ = served_by([status(200, run), status(200, [run])])
    assert client.run("digits").config == RUN
    assert [found.attempt for found in client.runs()] == [3]
    # What it must know to go on, and cannot read, is told with what to do.
    client, _ = served_by([status(200, {**run, "activity": "dreaming"})])
    with pytest.raises(errors.ApiError, match=r"omni-rl 0\.1\.0 cannot read the answer, at activity: .*install"):
        client.run("digits")


def test_an_error_of_a_newer_version_is_the_class_of_its_status() -> None:
    client, _ = served_by([status(409, {"code": "of_a_newer_version", "detail": "taken"})])
    with pytest.raises(ConflictError, match="of_a_newer_version: taken"):
        client.create_run(RUN)


def test_another_server_is_no_coordinator() -> None:
    moved = httpx.Response(301, headers={"location": "https://omni.example/v1/state"})
    client, _ = served_by([status(404), lambda request: moved, lambda request: httpx.Response(200, text="<html>")])
    for told in ("status 404", "status 301 .* sends to https://omni.example/v1/state", "not JSON"):
        with pytest.raises(errors.AddressError, match=f"{told}.*is OMNI_RL_URL right"):
            client.state()


def test_a_proxy_that_takes_no_request_of_this_size_is_no_other_server() -> None:
    client, _ = served_by([lambda request: httpx.Response(413, text="<html>413 Request Entity Too Large</html>")])
    with pytest.raises(errors.TooLargeError, match="a proxy before the coordinator takes less; raise its limit"):
        client.create_run(RUN)


def test_where_and_as_whom_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=READY)

    monkeypatch.setenv("OMNI_RL_URL", "https://omni.example/")
    monkeypatch.setenv("OMNI_RL_TOKEN", "orl_secret")
    Client(transport=httpx.MockTransport(answer)).ready()
    assert str(seen[0].url) == "https://omni.example/readyz"
    assert seen[0].headers["authorization"] == "Bearer orl_secret"
    with pytest.raises(errors.ConfigError, match="http://"):
        Client("omni.example")
    monkeypatch.delenv("OMNI_RL_TOKEN")
    for unset in ("OMNI_RL_TOKEN_FILE", "OMNI_RL_CA_FILE"):
        monkeypatch.setenv(unset, "")
    Client(transport=httpx.MockTransport(answer)).ready()
    assert "authorization" not in seen[1].headers


def test_a_coordinator_that_restarts_is_waited_for(tmp_path: Path) -> None:
    with live(tmp_path) as url:
        port = int(url.rsplit(":", 1)[1])
    found: list[str] = []

    def ask() -> None:
        with Client(url, retries=Retries(attempts=50, first=0.05, longest=0.2)) as client:
            found.append(client.create_run(RUN).run)

    thread = threading.Thread(target=ask)
    thread.start()
    with live(tmp_path, port=port):
        thread.join(30)
    assert found == ["digits"]
