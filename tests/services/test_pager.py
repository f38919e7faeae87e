"""A webhook hears of an incident once for each of its states, signed, and again until it has received it."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from omni_rl_services.coordinator import pager
from omni_rl_services.coordinator.webhooks import PagerSettings, WebhookSettings
from pydantic import SecretStr

from omni_rl.errors import ConfigError
from tests.services.conftest import Serve, Served
from tests.services.receiver import Received, Receiver, receiving
from tests.services.test_verdicts import CLEAN, RUN, SHIFTED, step

pytestmark = pytest.mark.anyio
SECRET = "k" * 32


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pager, "FIRST_RETRY", 0.01)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(SECRET + "\n")
    path.chmod(0o600)
    return path


def told(receiver: Receiver, **settings: Any) -> PagerSettings:
    webhook = WebhookSettings(**{"name": "ops", "url": receiver.url, **settings})
    return PagerSettings(webhooks=(webhook,), page="https://rl.example/", guide="https://rl.example/guide")


async def wait(receiver: Receiver, count: int) -> list[Received]:
    return await asyncio.to_thread(receiver.wait, count)


async def broken(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    await step(served, 0, CLEAN)
    await step(served, 1, SHIFTED)


async def test_each_state_is_told_once_and_signed(serve: Serve, receiver: Receiver, secret: Path) -> None:
    async with serve(pager=told(receiver, secret_file=secret)) as served:
        await broken(served)
        (first,) = await wait(receiver, 1)
        (incident,) = (await served.http.get("/v1/incidents")).json()
        assert first.json == {
            "version": 1,
            "state": "open",
            "incident": incident,
            "link": "https://rl.example/#run=math&incident=1",
        }
        assert incident["guide"] == "https://rl.example/guide#token_shift"
        parts = dict(part.split("=") for part in first.headers["Omni-RL-Signature"].split(","))
        signed = hmac.new(SECRET.encode(), parts["t"].encode() + b"." + first.body, hashlib.sha256)
        assert parts["v1"] == signed.hexdigest()
        await step(served, 2, SHIFTED)
        await served.http.post("/v1/incidents/1/acknowledge")
        await served.http.post("/v1/incidents/1/notes", json={"text": "no news to a pager"})
        await wait(receiver, 2)
        for number in (3, 4, 5):
            await step(served, number, CLEAN)
        got = await wait(receiver, 3)
        assert [one.json["state"] for one in got] == ["open", "acknowledged", "ended"]
        assert len({one.headers["Idempotency-Key"] for one in got}) == 3


async def test_an_incident_that_gets_worse_is_told_again(serve: Serve, receiver: Receiver) -> None:
    async with serve(pager=told(receiver)) as served:
        low = {"overall": {"gen_kl_error": {"warn": 1e-13, "mask": 1e-12, "pause": 20.0}}}
        await served.http.post("/v1/runs", json={**RUN, "limits": low})
        await step(served, 0, CLEAN)
        await wait(receiver, 1)
        await step(served, 1, SHIFTED)
        got = [one.json for one in await wait(receiver, 2)]
        assert [(one["state"], one["incident"]["severity"]) for one in got] == [("open", "mask"), ("open", "pause")]


async def test_what_was_not_received_is_told_again(serve: Serve, receiver: Receiver) -> None:
    receiver.answers = [500, 302, 429]
    async with serve(pager=told(receiver)) as served:
        await broken(served)
        got = await wait(receiver, 4)
        assert {one.headers["Idempotency-Key"] for one in got} == {got[0].headers["Idempotency-Key"]}
        assert {one.body for one in got} == {got[0].body}
        metrics = ""
        while 'omni_rl_webhook_deliveries_total{webhook="ops"} 1.0' not in metrics:
            metrics = (await served.http.get("/metrics")).text
        assert 'omni_rl_webhook_failures_total{webhook="ops"} 3.0' in metrics


async def test_an_incident_that_is_always_refused_keeps_no_other_from_its_receiver(serve: Serve) -> None:
    heard: list[int] = []

    def answer(request: httpx.Request) -> httpx.Response:
        incident = json.loads(request.content)["incident"]["incident"]
        heard.append(incident)
        return httpx.Response(400 if incident == 1 else 200)

    async with serve() as served:
        for run in ("a", "b"):
            await served.http.post("/v1/runs", json={**RUN, "run": run})
            await step(served, 0, SHIFTED, run=run)
        store = served.coordinator.store
        settings = PagerSettings(webhooks=(WebhookSettings(name="ops", url=SecretStr("http://ops.example/")),))
        paging = pager.Pager(settings, store, served.coordinator.telemetry, httpx.MockTransport(answer))
        paging.open()
        async with asyncio.timeout(10):
            while not (await store.incident(2)).told or heard.count(1) < 3:
                await asyncio.sleep(0.01)
        await paging.close()
        assert (await store.incident(1)).told == {}, "it is sent again and again"
        assert heard.count(2) == 1


async def test_an_error_that_nobody_foresaw_ends_no_webhook(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    failures = [UnicodeError("https://ops.example/very-secret"), httpx.InvalidURL("https://ops.example/very-secret")]

    def answer(request: httpx.Request) -> httpx.Response:
        if failures:
            raise failures.pop()
        return httpx.Response(200)

    async with serve() as served:
        await broken(served)
        store = served.coordinator.store
        webhook = WebhookSettings(name="ops", url=SecretStr("https://ops.example/very-secret"))
        settings = PagerSettings(webhooks=(webhook,))
        paging = pager.Pager(settings, store, served.coordinator.telemetry, httpx.MockTransport(answer))
        paging.open()
        async with asyncio.timeout(10):
            while not (await store.incident(1)).told:
                await asyncio.sleep(0.01)
        await paging.close()
        assert 'omni_rl_webhook_failures_total{webhook="ops"} 2.0' in (await served.http.get("/metrics")).text
    assert "webhook ops was not told, again in 0 s: InvalidURL" in caplog.text
    assert "webhook ops was not told, again in 0 s: UnicodeError" in caplog.text
    assert "very-secret" not in caplog.text


async def test_a_restart_tells_what_was_missed_and_nothing_twice(serve: Serve, receiver: Receiver) -> None:
    async with serve() as served:
        await broken(served)
    for _ in range(2):
        async with serve(pager=told(receiver)) as served:
            await wait(receiver, 1)
            while not (await served.coordinator.store.incident(1)).told:
                await asyncio.sleep(0.01)
    assert len(receiver.got) == 1


async def test_what_is_less_than_asked_for_is_not_told(serve: Serve, receiver: Receiver) -> None:
    async with serve(pager=told(receiver, least="pause")) as served:
        await served.http.post("/v1/runs", json={**RUN, "silent_after": 0.01})
        await step(served, 0, CLEAN)
        await asyncio.sleep(0.02)
        await served.coordinator.silence.look()
        assert (await served.http.get("/v1/incidents")).json()[0]["kind"] == "silence"
        await step(served, 1, SHIFTED)
        (only,) = await wait(receiver, 1)
        assert only.json["incident"]["kind"] == "drift"


async def test_slack_gets_text_and_no_markup_of_a_clients(serve: Serve, receiver: Receiver) -> None:
    async with serve(pager=told(receiver, template="slack")) as served:
        await broken(served)
        (message,) = await wait(receiver, 1)
        (attachment,) = message.json["attachments"]
        assert message.json["text"] == "Run math: drift, pause, token_shift"
        assert "What to do: Align labels" in attachment["text"]
        assert "<https://rl.example/#run=math&incident=1|Open the run>" in attachment["text"]
        assert "Omni-RL-Signature" not in message.headers


async def test_pagerduty_gets_one_alert_from_trigger_to_resolve(serve: Serve, receiver: Receiver, secret: Path) -> None:
    async with serve(pager=told(receiver, template="pagerduty", secret_file=secret)) as served:
        await broken(served)
        await wait(receiver, 1)
        await served.http.post("/v1/incidents/1/acknowledge")
        await wait(receiver, 2)
        await served.http.post("/v1/incidents/1/end")
        got = [one.json for one in await wait(receiver, 3)]
        assert [one["event_action"] for one in got] == ["trigger", "acknowledge", "resolve"]
        assert {one["dedup_key"] for one in got} == {"omni-rl/https://rl.example//1"}
        assert {one["routing_key"] for one in got} == {SECRET}
        assert got[0]["payload"]["severity"] == "critical"
        assert got[0]["payload"]["summary"].startswith("Run math: drift, pause, token_shift: Step 1, ")


async def test_a_line_end_after_an_address_is_no_part_of_it(serve: Serve, receiver: Receiver) -> None:
    async with serve(pager=told(receiver, url=f" {receiver.url}\n")) as served:
        await broken(served)
        await wait(receiver, 1)


async def test_no_address_and_no_secret_is_in_a_log(
    serve: Serve, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    settings = told(receiver, url="http://127.0.0.1:1/services/very-secret")
    async with serve(pager=settings) as served:
        await broken(served)
        while "was not told" not in caplog.text:
            await asyncio.sleep(0.01)
    assert "very-secret" not in caplog.text + repr(settings)


def test_settings_that_cannot_work_are_refused(tmp_path: Path) -> None:
    for settings in (
        {"name": "a", "url": "ftp://example/very-secret"},
        {"name": "a", "url": "https://example", "routing_key": "very-secret"},
        {"name": "a", "url": "https://"},
        {"name": "a", "url": "http://host:abc/"},
        {"name": "a", "url": "http://127.0.0.1:9/x\ny"},
        {"name": "a", "url": "http://xn--/"},
        {"name": "a", "url": "https://example", "template": "pagerduty"},
    ):
        with pytest.raises(ConfigError) as refused:
            WebhookSettings(**settings)  # type: ignore[arg-type]
        assert "very-secret" not in str(refused.value)
    open_to_all = tmp_path / "secret"
    open_to_all.write_text("x")
    open_to_all.chmod(0o644)
    with pytest.raises(ConfigError, match="may be read by others"):
        pager._secret(WebhookSettings(name="a", url="https://example", secret_file=open_to_all))  # type: ignore[arg-type]
