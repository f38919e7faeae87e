"""What webhooks are sent of an incident: the incident itself, or what Slack and PagerDuty take."""

from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import quote

from omni_rl.api.incidents import IncidentAnswer
from omni_rl_services.coordinator.webhooks import PagerSettings

VERSION = 1
Standing = Literal["open", "acknowledged", "ended"]
COLOURS = {"open": "#c62828", "acknowledged": "#ef6c00", "ended": "#2e7d32"}
URGENCY = {"pause": "critical", "mask": "warning"}
ACTIONS: dict[Standing, str] = {"open": "trigger", "acknowledged": "acknowledge", "ended": "resolve"}


def standing(incident: IncidentAnswer) -> Standing:
    """Return whether an incident waits for somebody, is taken care of, or has ended."""
    if incident.ended is not None:
        return "ended"
    return "open" if incident.acknowledged is None else "acknowledged"


def state(incident: IncidentAnswer) -> str:
    """Return the state of an incident that is sent: the same state is sent once. A worse figure of the same severity is
    no news to a pager."""
    now = standing(incident)
    return now if now == "ended" else f"{now} {incident.severity} {incident.cause}"


def plain(incident: IncidentAnswer, settings: PagerSettings) -> dict[str, Any]:
    """Return the incident as the API has it, with its standing and a link to the page."""
    return {
        "version": VERSION,
        "state": standing(incident),
        "incident": incident.model_dump(mode="json"),
        "link": link(incident, settings),
    }


def slack(incident: IncidentAnswer, settings: PagerSettings) -> dict[str, Any]:
    """Return a message for an incoming webhook of Slack's. Names of runs and what happened are text, never markup."""
    page = link(incident, settings)
    lines = [f"{_title(incident)}", incident.what]
    lines += [] if incident.ended is not None else [f"What to do: {incident.remedy}", incident.guide]
    lines += [done.what for done in incident.actions[-1:]]
    text = _escaped("\n".join(lines)) + (f"\n<{page}|Open the run>" if page else "")
    return {
        "text": _escaped(_title(incident)),
        "attachments": [{"color": COLOURS[standing(incident)], "text": text, "mrkdwn_in": []}],
    }


def pagerduty(incident: IncidentAnswer, settings: PagerSettings, routing_key: str) -> dict[str, Any]:
    """Return an event of PagerDuty's Events API v2: one incident is one alert there, from trigger to resolve."""
    page = link(incident, settings)
    return {
        "routing_key": routing_key,
        "event_action": ACTIONS[standing(incident)],
        "dedup_key": f"omni-rl/{settings.page or ''}/{incident.incident}",
        "payload": {
            "summary": f"{_title(incident)}: {incident.what}"[:1024],
            "source": incident.run or "omni-rl",
            "severity": URGENCY.get(incident.severity, "info"),
            "timestamp": datetime.fromtimestamp(incident.opened, UTC).isoformat(),
            "component": incident.kind,
            "class": incident.cause or incident.kind,
            "custom_details": {"what to do": incident.remedy, "guide": incident.guide, "step": incident.step},
        },
        "links": [{"href": page, "text": "Open the run"}] if page else [],
    }


def link(incident: IncidentAnswer, settings: PagerSettings) -> str | None:
    """Return the address of the page of the incident's run, or None where the settings do not say how people reach
    it."""
    if settings.page is None:
        return None
    page = settings.page.rstrip("/")
    return page if incident.run is None else f"{page}/#run={quote(incident.run)}&incident={incident.incident}"


def _title(incident: IncidentAnswer) -> str:
    of = f"Run {incident.run}" if incident.run else "omni-rl"
    match standing(incident):
        case "ended":
            return f"{of}: over ({incident.kind})"
        case "acknowledged" if incident.acknowledged is not None:
            return f"{of}: {incident.kind}, {incident.severity}; {incident.acknowledged.by} has it in hand"
        case _:
            return f"{of}: {incident.kind}, {incident.severity}" + (f", {incident.cause}" if incident.cause else "")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
