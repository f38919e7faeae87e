"""What a receiver of incidents is sent: whole messages, worked by hand."""

from typing import Any

import pytest
from omni_rl_services.coordinator import messages
from omni_rl_services.coordinator.webhooks import PagerSettings

from omni_rl.api.incidents import AcknowledgementAnswer, ActionAnswer, IncidentAnswer

NOBODY = PagerSettings()
PAGE = PagerSettings(page="https://rl.example/")
BY_ANN = AcknowledgementAnswer(by="ann", at=1_795_500_060.0)
OPEN = IncidentAnswer(
    incident=7,
    run="a b&c",
    kind="drift",
    what="Step 6: <b> & more.",
    remedy="Look at it.",
    guide="guide#kernel",
    severity="pause",
    cause="kernel",
    attempt=1,
    step=6,
    figure=None,
    good=None,
    evidence={},
    actions=[],
    acknowledged=None,
    notes=[],
    opened=1_795_500_000.0,
    changed=1_795_500_090.0,
    ended=None,
)


def changed(**said: Any) -> IncidentAnswer:
    return OPEN.model_copy(update=said)


TAKEN = changed(acknowledged=BY_ANN)
OVER = changed(acknowledged=BY_ANN, ended=1_795_500_100.0)


@pytest.mark.parametrize(
    ("incident", "standing", "state"),
    [
        (OPEN, "open", "open pause kernel"),
        (changed(severity="mask"), "open", "open mask kernel"),
        (TAKEN, "acknowledged", "acknowledged pause kernel"),
        (OVER, "ended", "ended"),
        (changed(ended=1.0), "ended", "ended"),
        (changed(ended=0.0), "ended", "ended"),
    ],
)
def test_a_state_is_news_again_when_severity_or_cause_change_and_once_when_it_ends(
    incident: IncidentAnswer, standing: str, state: str
) -> None:
    assert messages.standing(incident) == standing
    assert messages.state(incident) == state


@pytest.mark.parametrize(
    ("settings", "run", "address"),
    [
        (NOBODY, "a b&c", None),
        (PAGE, "a b&c", "https://rl.example/#run=a%20b%26c&incident=7"),
        (PagerSettings(page="https://rl.example"), "math", "https://rl.example/#run=math&incident=7"),
        (PAGE, None, "https://rl.example"),
    ],
)
def test_a_link_leads_to_the_runs_incident_where_people_reach_the_page(
    settings: PagerSettings, run: str | None, address: str | None
) -> None:
    incident = changed(run=run)
    assert messages.link(incident, settings) == address
    assert messages.plain(incident, settings)["link"] == address
    assert messages.pagerduty(incident, settings, "key")["links"] == (
        [{"href": address, "text": "Open the run"}] if address else []
    )
    assert messages.slack(incident, settings)["attachments"][0]["text"].endswith(
        f"\n<{address}|Open the run>" if address else "guide#kernel"
    )


def test_the_incident_as_the_api_has_it_is_sent_with_its_version_and_state() -> None:
    assert messages.plain(TAKEN, NOBODY) == {
        "version": 1,
        "state": "acknowledged",
        "incident": TAKEN.model_dump(mode="json"),
        "link": None,
    }


@pytest.mark.parametrize(
    ("incident", "title", "colour", "lines"),
    [
        (OPEN, "Run a b&amp;c: drift, pause, kernel", "#c62828", ["What to do: Look at it.", "guide#kernel"]),
        (
            changed(run=None, cause=None, kind="engine", severity="mask"),
            "omni-rl: engine, mask",
            "#c62828",
            ["What to do: Look at it.", "guide#kernel"],
        ),
        (
            TAKEN,
            "Run a b&amp;c: drift, pause; ann has it in hand",
            "#ef6c00",
            ["What to do: Look at it.", "guide#kernel"],
        ),
        (OVER, "Run a b&amp;c: over (drift)", "#2e7d32", []),
    ],
)
def test_slack_is_sent_a_title_what_happened_and_what_to_do_while_it_is_open(
    incident: IncidentAnswer, title: str, colour: str, lines: list[str]
) -> None:
    text = "\n".join([title, "Step 6: &lt;b&gt; &amp; more.", *lines])
    assert messages.slack(incident, NOBODY) == {
        "text": title,
        "attachments": [{"color": colour, "text": text, "mrkdwn_in": []}],
    }


def test_slack_is_told_only_the_last_thing_that_was_done() -> None:
    done = [ActionAnswer(at=1.0, what="the trainer was told"), ActionAnswer(at=2.0, what="a step was calm")]
    (attachment,) = messages.slack(changed(actions=done), NOBODY)["attachments"]
    assert attachment["text"].splitlines()[2:] == ["What to do: Look at it.", "guide#kernel", "a step was calm"]


@pytest.mark.parametrize(
    ("severity", "urgency"), [("pause", "critical"), ("mask", "warning"), ("warn", "info"), ("ok", "info")]
)
def test_pagerduty_is_told_how_urgent_it_is(severity: str, urgency: str) -> None:
    assert messages.pagerduty(changed(severity=severity), NOBODY, "key")["payload"]["severity"] == urgency


@pytest.mark.parametrize(
    ("incident", "action", "summary"),
    [
        (OPEN, "trigger", "Run a b&c: drift, pause, kernel: Step 6: <b> & more."),
        (TAKEN, "acknowledge", "Run a b&c: drift, pause; ann has it in hand: Step 6: <b> & more."),
        (OVER, "resolve", "Run a b&c: over (drift): Step 6: <b> & more."),
    ],
)
def test_pagerduty_is_sent_one_event_for_each_state(incident: IncidentAnswer, action: str, summary: str) -> None:
    assert messages.pagerduty(incident, PAGE, "key") == {
        "routing_key": "key",
        "event_action": action,
        "dedup_key": "omni-rl/https://rl.example//7",
        "payload": {
            "summary": summary,
            "source": "a b&c",
            "severity": "critical",
            "timestamp": "2026-11-24T06:00:00+00:00",
            "component": "drift",
            "class": "kernel",
            "custom_details": {"what to do": "Look at it.", "guide": "guide#kernel", "step": 6},
        },
        "links": [{"href": "https://rl.example/#run=a%20b%26c&incident=7", "text": "Open the run"}],
    }


def test_pagerduty_is_told_of_an_incident_of_no_run_and_no_cause() -> None:
    event = messages.pagerduty(changed(run=None, cause=None, kind="engine"), NOBODY, "key")
    assert event["dedup_key"] == "omni-rl//7"
    assert (event["payload"]["source"], event["payload"]["class"]) == ("omni-rl", "engine")


def test_pagerduty_takes_1024_characters_of_summary_and_no_more() -> None:
    """Its Events API refuses the whole event for more."""
    title = len("Run a b&c: drift, pause, kernel: ")
    for length, kept in ((1024 - title, 1024), (1025 - title, 1024), (5000, 1024), (10, title + 10)):
        event = messages.pagerduty(changed(what="x" * length), NOBODY, "key")
        assert len(event["payload"]["summary"]) == kept
