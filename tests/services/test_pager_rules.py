"""Which incidents a webhook is sent, when it is sent them again, and how a message is signed."""

import asyncio
import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from omni_rl_services.coordinator import pager
from omni_rl_services.coordinator.pager import Pager, delivery, signature
from omni_rl_services.coordinator.telemetry import Telemetry
from omni_rl_services.coordinator.webhooks import PagerSettings, WebhookSettings
from pydantic import SecretStr

from omni_rl.api.incidents import AcknowledgementAnswer
from omni_rl.errors import ConfigError, LedgerError
from omni_rl.ledger.types import Incident
from tests.services.receiver import receiving
from tests.services.test_telemetry import samples

pytestmark = pytest.mark.anyio
URL = "http://ops.example/very-secret"
OPEN = Incident(
    1, "math", "drift", "", 1, 6, 5.0, 5.0, None, 2, "kernel", "Step 6.", "", None, 1.0, None, {}, (), None, (), {}
)


class Kept:
    """A ledger's incidents, and what was noted of their deliveries."""

    def __init__(self, *incidents: Incident) -> None:
        self.incidents = list(incidents)
        self.since: list[float] = []
        self.failures: list[Exception] = []
        self.full = False

    async def incidents_since(self, when: float) -> list[Incident]:
        self.since.append(when)
        if self.failures:
            raise self.failures.pop()
        return list(self.incidents)

    async def incident_told(self, number: int, webhook: str, state: str) -> None:
        if self.full:
            raise LedgerError("the disk is full")
        self.incidents = [
            replace(one, told={**one.told, webhook: state}) if one.id == number else one for one in self.incidents
        ]


class Receiver:
    """Answers with the statuses that it is told to, then with 200."""

    def __init__(self, *answers: int) -> None:
        self.answers = list(answers)
        self.got: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.got.append(request)
        headers = {"Location": "http://elsewhere.example/"}
        return httpx.Response(self.answers.pop(0) if self.answers else 200, headers=headers)

    @property
    def numbers(self) -> list[int]:
        return [json.loads(one.content)["incident"]["incident"] for one in self.got]


def webhook(name: str = "ops", **said: Any) -> WebhookSettings:
    return WebhookSettings(**{"name": name, "url": SecretStr(URL), **said})


def made(kept: Kept, receiver: Receiver, *webhooks: WebhookSettings) -> tuple[Pager, Telemetry]:
    telemetry, store = Telemetry(1), kept
    settings = PagerSettings(webhooks=webhooks or (webhook(),))
    fake: Any = store
    return Pager(settings, fake, telemetry, httpx.MockTransport(receiver)), telemetry


async def told(kept: Kept, receiver: Receiver, *webhooks: WebhookSettings) -> Telemetry:
    """Look at the incidents once, for each webhook."""
    paging, telemetry = made(kept, receiver, *webhooks)
    async with httpx.AsyncClient(transport=httpx.MockTransport(receiver)) as client:
        for one in webhooks or (webhook(),):
            await paging._tell_all(client, one)
    return telemetry


@pytest.mark.parametrize(
    ("incident", "least", "sent"),
    [
        (OPEN, "mask", True),
        (OPEN, "warn", True),
        (OPEN, "pause", False),
        (replace(OPEN, severity=3), "pause", True),
        (replace(OPEN, severity=1), "mask", False),
        (replace(OPEN, told={"ops": "open mask kernel"}), "mask", False),
        (replace(OPEN, told={"other": "open mask kernel"}), "mask", True),
        (replace(OPEN, told={"ops": "open mask unknown"}), "mask", True),
        (
            replace(OPEN, acknowledged=AcknowledgementAnswer(by="ann", at=6.0), told={"ops": "open mask kernel"}),
            "mask",
            True,
        ),
        (replace(OPEN, ended=7.0), "mask", False),
        (replace(OPEN, ended=7.0, told={"ops": "open mask kernel"}), "mask", True),
        (replace(OPEN, ended=7.0, told={"ops": "ended"}), "mask", False),
        (replace(OPEN, ended=7.0, told={"other": "open mask kernel"}), "mask", False),
    ],
)
async def test_what_is_news_to_a_webhook_is_sent(incident: Incident, least: str, sent: bool) -> None:
    kept, receiver = Kept(incident), Receiver()
    telemetry = await told(kept, receiver, webhook(least=least))
    assert receiver.numbers == [1] * sent
    found = samples(telemetry.expose().decode())
    assert found.get(("omni_rl_webhook_deliveries_total", (("webhook", "ops"),)), 0) == sent
    await told(kept, receiver, webhook(least=least))
    assert len(receiver.got) == sent, "once"


async def test_ends_are_sent_for_a_day() -> None:
    kept = Kept()
    await told(kept, Receiver())
    assert time.time() - kept.since[0] == pytest.approx(24 * 3600, abs=30)


@pytest.mark.parametrize("status", [199, 300, 302, 400, 404, 500])
async def test_an_incident_that_is_refused_is_no_reason_to_keep_the_next(status: int) -> None:
    kept, receiver = Kept(OPEN, replace(OPEN, id=2), replace(OPEN, id=3)), Receiver(status, 200, 503)
    with pytest.raises(httpx.HTTPError, match=f"it answered {status}"):
        await told(kept, receiver)
    assert receiver.numbers == [1, 2, 3]
    assert [bool(one.told) for one in kept.incidents] == [False, True, False]
    await told(kept, receiver)
    assert receiver.numbers == [1, 2, 3, 1, 3]


@pytest.mark.parametrize("status", [200, 201, 204, 299])
async def test_any_success_is_one(status: int) -> None:
    kept = Kept(OPEN)
    await told(kept, Receiver(status))
    assert kept.incidents[0].told == {"ops": "open mask kernel"}


class Waits:
    """asyncio, of which `sleep` only notes how long somebody wanted to wait."""

    def __init__(self, most: int) -> None:
        self.waits: list[float] = []
        self.most = most

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        if len(self.waits) == self.most:
            await asyncio.Event().wait()
        await asyncio.sleep(0)


async def test_tries_are_a_second_apart_and_twice_as_far_each_time_up_to_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waits = Waits(9)
    monkeypatch.setattr(pager, "asyncio", waits)
    kept, receiver = Kept(OPEN), Receiver(*[500] * 8)
    kept.failures = [LedgerError("disk I/O error")]
    paging, telemetry = made(kept, receiver)
    paging.open()
    async with asyncio.timeout(10):
        while len(waits.waits) < 9:
            await asyncio.sleep(0)
    await paging.close()
    assert waits.waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    messages = [one.getMessage() for one in caplog.records if "was not told" in one.getMessage()]
    assert messages[:2] == [
        "webhook ops was not told, again in 1 s: disk I/O error",
        "webhook ops was not told, again in 2 s: it answered 500",
    ]
    assert samples(telemetry.expose().decode())["omni_rl_webhook_failures_total", (("webhook", "ops"),)] == 9


async def test_after_a_success_the_next_failure_is_tried_again_after_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = Waits(3)
    monkeypatch.setattr(pager, "asyncio", waits)
    monkeypatch.setattr(pager, "LOOK_SECONDS", 0.001)
    kept, receiver = Kept(OPEN), Receiver(500, 500)
    paging, _ = made(kept, receiver)
    paging.open()
    async with asyncio.timeout(10):
        while not kept.incidents[0].told:
            await asyncio.sleep(0)
        receiver.answers.append(500)
        kept.incidents.append(replace(OPEN, id=2))
        while len(waits.waits) < 3:
            await asyncio.sleep(0.001)
    await paging.close()
    assert waits.waits == [1, 2, 1]


@pytest.mark.parametrize("poked", [False, True])
async def test_news_are_looked_for_when_told_of_and_now_and_then(monkeypatch: pytest.MonkeyPatch, poked: bool) -> None:
    monkeypatch.setattr(pager, "LOOK_SECONDS", 60.0 if poked else 0.01)
    kept, receiver = Kept(), Receiver()
    paging, _ = made(kept, receiver, webhook("a"), webhook("b"))
    paging.open()
    async with asyncio.timeout(10):
        while len(kept.since) < 2:
            await asyncio.sleep(0)
        kept.incidents.append(OPEN)
        if poked:
            paging.poke()
        while set(kept.incidents[0].told) < {"a", "b"}:
            await asyncio.sleep(0)
    await paging.close()
    assert receiver.numbers == [1, 1]


async def test_the_environments_proxies_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    kept: Any = Kept(OPEN)
    with receiving() as receiver:
        settings = PagerSettings(webhooks=(webhook(url=SecretStr(receiver.url)),))
        paging = Pager(settings, kept, Telemetry(1))
        paging.open()
        await asyncio.to_thread(receiver.wait, 1)
        await paging.close()
    assert receiver.got[0].json["incident"]["run"] == "math"


async def test_no_redirection_is_followed() -> None:
    kept, receiver = Kept(OPEN), Receiver(307)
    paging, _ = made(kept, receiver)
    paging.open()
    async with asyncio.timeout(10):
        while not receiver.got:
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
    await paging.close()
    assert [str(one.url) for one in receiver.got] == [URL]
    assert kept.incidents[0].told == {}


def secret_file(directory: Path, content: bytes = b" key \n", mode: int = 0o600) -> Path:
    path = directory / "secret"
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(("template", "signed"), [("omni-rl", True), ("slack", False), ("pagerduty", False)])
async def test_our_own_messages_are_signed_and_pagerduty_has_its_key_in_the_body(
    tmp_path: Path, template: str, signed: bool
) -> None:
    receiver = Receiver()
    await told(Kept(OPEN), receiver, webhook(template=template, secret_file=secret_file(tmp_path)))
    (request,) = receiver.got
    assert request.headers["content-type"] == "application/json"
    assert request.headers["idempotency-key"] == delivery(1, "open mask kernel")
    assert json.loads(request.content).get("routing_key") == ("key" if template == "pagerduty" else None)
    if signed:
        at = int(request.headers["omni-rl-signature"].removeprefix("t=").partition(",")[0])
        assert request.headers["omni-rl-signature"] == signature("key", at, request.content)
        assert time.time() - at == pytest.approx(0, abs=30)
    else:
        assert "omni-rl-signature" not in request.headers


async def test_without_a_secret_nothing_is_signed() -> None:
    receiver = Receiver()
    await told(Kept(OPEN), receiver)
    assert "omni-rl-signature" not in receiver.got[0].headers


def test_a_signature_is_that_of_seconds_a_full_stop_and_the_body() -> None:
    # printf '1795500000.{}' | openssl dgst -sha256 -hmac key
    assert (
        signature("key", 1795500000, b"{}")
        == "t=1795500000,v1=652c90514220f601132ee14e0338e32e78171ad2401cee5dfdf61c680a985c2e"
    )
    assert delivery(7, "ended") != delivery(7, "open")
    assert delivery(7, "ended").startswith("7-")
    assert len(delivery(7, "ended")) == 2 + 16


@pytest.mark.parametrize("mode", [0o640, 0o620, 0o610, 0o604, 0o602, 0o601])
def test_a_secret_that_anybody_else_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = secret_file(tmp_path, mode=mode)
    with pytest.raises(ConfigError, match=r"webhook ops: .* may be read by others; run: chmod 600 "):
        made(Kept(), Receiver(), webhook(secret_file=path))
    path.chmod(0o400)
    made(Kept(), Receiver(), webhook(secret_file=path))


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "is empty"), (b" \n", "is empty"), (b"\xff\xfe", "cannot be read"), (None, "cannot be")]
)
def test_a_secret_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = secret_file(tmp_path, content or b"")
    if content is None:
        path.unlink()
    with pytest.raises(ConfigError, match=f"webhook ops: .* {says}"):
        made(Kept(), Receiver(), webhook(secret_file=path))


async def test_what_a_stranger_raises_is_told_by_its_type_and_lines_and_without_its_words(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = Waits(3)
    monkeypatch.setattr(pager, "asyncio", waits)
    errors = [ValueError(URL), httpx.ConnectError(URL), LedgerError("the ledger's own words")]

    def answer(request: httpx.Request) -> httpx.Response:
        raise errors.pop(0)

    kept: Any = Kept(OPEN)
    paging = Pager(PagerSettings(webhooks=(webhook(),)), kept, Telemetry(1), httpx.MockTransport(answer))
    with caplog.at_level(logging.WARNING):
        paging.open()
        async with asyncio.timeout(10):
            while len(waits.waits) < 3:
                await asyncio.sleep(0)
        await paging.close()
    first, second, third = (one.getMessage() for one in caplog.records if "was not told" in one.getMessage())
    assert first.startswith("webhook ops was not told, again in 1 s: ValueError\n")
    assert "in answer" in first
    assert second == "webhook ops was not told, again in 2 s: ConnectError"
    assert third == "webhook ops was not told, again in 4 s: the ledger's own words"
    assert "very-secret" not in caplog.text


async def test_while_the_ledger_takes_nothing_each_incident_is_sent_once() -> None:
    kept, receiver = Kept(OPEN, replace(OPEN, id=2)), Receiver()
    paging, _ = made(kept, receiver)
    kept.full = True
    async with httpx.AsyncClient(transport=httpx.MockTransport(receiver)) as client:
        for _ in range(3):
            with pytest.raises(LedgerError):
                await paging._tell_all(client, webhook())
        assert receiver.numbers == [1, 2]
        kept.full = False
        await paging._tell_all(client, webhook())
        assert receiver.numbers == [1, 2]
        assert [list(one.told) for one in kept.incidents] == [["ops"], ["ops"]]
        kept.incidents[0] = replace(kept.incidents[0], ended=9.0)  # it is news again
        await paging._tell_all(client, webhook())
    assert receiver.numbers == [1, 2, 1]
