"""Tells webhooks of incidents: each state of each once, signed, and again until it is received."""

import asyncio
import hashlib
import hmac
import json
import logging
import stat
import time
from collections import defaultdict
from traceback import format_tb
from typing import Any

import httpx

from omni_rl.api.incidents import IncidentAnswer
from omni_rl.consistency.limits import Severity
from omni_rl.errors import ConfigError, LedgerError, OmniRLError
from omni_rl_services.coordinator import messages
from omni_rl_services.coordinator.store import Store
from omni_rl_services.coordinator.telemetry import Telemetry
from omni_rl_services.coordinator.views import incident_answer
from omni_rl_services.coordinator.webhooks import PagerSettings, WebhookSettings

logger = logging.getLogger("omni_rl.coordinator")
LOOK_SECONDS = 5.0
"""Seconds after which incidents are looked at although nothing was poked."""
LATE_SECONDS = 86_400.0
"""Seconds since an incident's end within which its end is still sent."""
TIMEOUT_SECONDS = 10.0
FIRST_RETRY, LAST_RETRY = 1.0, 60.0
"""Seconds between the first two tries, and the most between any two; each wait doubles the one before."""


class _RefusedError(httpx.HTTPError):
    """The receiver answered, and not that it has the message."""


class Pager:
    """Sends incidents to webhooks, in one task for each, so that a receiver that hangs holds up no other. What was sent
    is in the ledger: a restart sends nothing twice that it knows to be received, and nothing is lost."""

    def __init__(
        self,
        settings: PagerSettings,
        store: Store,
        telemetry: Telemetry,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._telemetry = telemetry
        self._transport = transport
        self._delivered: dict[str, dict[int, str]] = defaultdict(dict)
        self._secrets = {one.name: _secret(one) for one in settings.webhooks}
        self._news = {one.name: asyncio.Event() for one in settings.webhooks}
        self._tasks: list[asyncio.Task[None]] = []

    def open(self) -> None:
        """Begin to send."""
        self._tasks = [
            asyncio.create_task(self._serve(one), name=f"webhook {one.name}") for one in self._settings.webhooks
        ]

    async def close(self) -> None:
        """End the tasks. What is not sent yet is sent after the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def poke(self) -> None:
        """Have the incidents looked at, since there may be something new."""
        for news in self._news.values():
            news.set()

    async def _serve(self, webhook: WebhookSettings) -> None:
        news, wait = self._news[webhook.name], FIRST_RETRY
        # A receiver must not send us elsewhere, and the environment's proxies are not the operator's word.
        async with httpx.AsyncClient(
            timeout=TIMEOUT_SECONDS, follow_redirects=False, trust_env=False, transport=self._transport
        ) as client:
            while True:
                news.clear()
                try:
                    await self._tell_all(client, webhook)
                except Exception as error:
                    # Whatever it is: the end of the task would go unseen, and nobody be told of any incident.
                    self._telemetry.webhook_failures.labels(webhook.name).inc()
                    logger.warning("webhook %s was not told, again in %.0f s: %s", webhook.name, wait, _why(error))
                    await asyncio.sleep(wait)
                    wait = min(2 * wait, LAST_RETRY)
                    continue
                wait = FIRST_RETRY
                try:
                    async with asyncio.timeout(LOOK_SECONDS):
                        await news.wait()
                except TimeoutError:
                    continue

    async def _tell_all(self, client: httpx.AsyncClient, webhook: WebhookSettings) -> None:
        """Send everything that this webhook has not received yet, oldest first. What the receiver refuses keeps nothing
        later from it, and is sent again the next time. Where the ledger did not take that something was received, that
        alone is tried again.

        Raises:
            httpx.HTTPError: the receiver did not answer, or it refused some.
            LedgerError: the ledger cannot be read, or did not take what was received.
        """
        least = Severity[webhook.least.upper()]
        failed: Exception | None = None
        for kept in await self._store.incidents_since(time.time() - LATE_SECONDS):
            incident = incident_answer(kept, self._settings.guide)
            state, told = messages.state(incident), kept.told.get(webhook.name)
            # What began and ended before anybody was told is nobody's news.
            if state == told or kept.severity < least or (told is None and kept.ended is not None):
                continue
            delivered = self._delivered[webhook.name]
            try:
                if delivered.get(kept.id) != state:
                    await self._send(client, webhook, incident, state)
                    delivered[kept.id] = state
                await self._store.incident_told(kept.id, webhook.name, state)
            except (_RefusedError, LedgerError) as error:
                failed = failed or error
                continue
            del delivered[kept.id]
            self._telemetry.webhook_told.labels(webhook.name).inc()
        if failed is not None:
            raise failed

    async def _send(
        self, client: httpx.AsyncClient, webhook: WebhookSettings, incident: IncidentAnswer, state: str
    ) -> None:
        body = json.dumps(self._body(webhook, incident)).encode()
        headers = {"Content-Type": "application/json", "Idempotency-Key": delivery(incident.incident, state)}
        secret = self._secrets[webhook.name]
        if secret is not None and webhook.template == "omni-rl":
            headers["Omni-RL-Signature"] = signature(secret, int(time.time()), body)
        answer = await client.post(webhook.url.get_secret_value(), content=body, headers=headers)
        if not answer.is_success:
            raise _RefusedError(f"it answered {answer.status_code}")

    def _body(self, webhook: WebhookSettings, incident: IncidentAnswer) -> dict[str, Any]:
        match webhook.template:
            case "slack":
                return messages.slack(incident, self._settings)
            case "pagerduty":
                return messages.pagerduty(incident, self._settings, self._secrets[webhook.name] or "")
            case _:
                return messages.plain(incident, self._settings)


def delivery(incident: int, state: str) -> str:
    """Return the name of a delivery: a receiver that gets it twice, because its answer was lost, recognises it."""
    return f"{incident}-{hashlib.sha256(state.encode()).hexdigest()[:16]}"


def signature(secret: str, at: int, body: bytes) -> str:
    """Return `t=SECONDS,v1=HEX`: HMAC-SHA256 of the seconds, a full stop and the body. A receiver refuses an old
    one."""
    signed = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256)
    return f"t={at},v1={signed.hexdigest()}"


def _why(error: Exception) -> str:
    """Return an error's text without the address, which may be a secret: that of a stranger's error may have it, so
    its type is told, and the lines that raised it."""
    if isinstance(error, _RefusedError | OmniRLError):
        return str(error)
    name = type(error).__name__
    return name if isinstance(error, httpx.HTTPError) else f"{name}\n{''.join(format_tb(error.__traceback__))}"


def _secret(webhook: WebhookSettings) -> str | None:
    """Return a webhook's secret, if it has one. Raises `ConfigError` where the file cannot be read, or others may read
    it."""
    path = webhook.secret_file
    if path is None:
        return None
    try:
        mode, secret = stat.S_IMODE(path.stat().st_mode), path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"webhook {webhook.name}: {path} cannot be read: {error}") from None
    if mode & 0o077:
        raise ConfigError(f"webhook {webhook.name}: {path} may be read by others; run: chmod 600 {path}")
    if not secret:
        raise ConfigError(f"webhook {webhook.name}: {path} is empty")
    return secret
