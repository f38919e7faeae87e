"""What both drills do: be woken, find the run, and take its incident in hand. How long it took is printed, for whoever
looks (`-s`); `omni-rl bench dashboard` holds it against its bars, on a machine that does nothing else."""

import re
import time

from omni_rl_services.coordinator.webhooks import PagerSettings, WebhookSettings
from playwright.sync_api import Locator, Page, expect
from pydantic import SecretStr

from tests.services.receiver import Received, Receiver


def pager(receiver: Receiver) -> PagerSettings:
    """Incidents are told to `receiver`."""
    return PagerSettings(webhooks=(WebhookSettings(name="ops", url=SecretStr(receiver.url)),))


def told(receiver: Receiver, before: int, sealed: float) -> Received:
    """What the webhook received after the `before` that it had, after a seal that was asked for at `sealed`."""
    found = receiver.wait(before + 1)[before]
    took = found.at - sealed
    print(f"seal to receipt: {took:.2f} s")  # noqa: T201 - what the drill is for
    return found


def found_on_top(page: Page, run: str) -> None:
    """The run comes on top of the first screen; it is opened."""
    began = time.time()
    first = page.get_by_role("region", name="Runs", exact=True).locator("tbody tr").first
    expect(first).to_contain_text(re.compile("PAUSE|HALTED"))
    expect(first.locator("td").nth(1)).to_have_text(run)
    print(f"receipt to the first screen: {time.time() - began:.2f} s")  # noqa: T201
    first.get_by_role("link").click()


def story(page: Page, run: str) -> Locator:
    """The incident, on the page of its run."""
    page.wait_for_function("(run) => location.hash.includes(`run=${run}`)", arg=run)
    return page.locator("article").first
