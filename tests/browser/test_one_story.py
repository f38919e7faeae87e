"""Page, status, REST, webhook, Prometheus and W&B tell of an incident the same, field by field."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import httpx
import pytest
from omni_rl_services.coordinator.settings import WandbSettings
from omni_rl_services.coordinator.webhooks import PagerSettings, WebhookSettings
from playwright.sync_api import expect
from pydantic import SecretStr
from typer.testing import CliRunner

from omni_rl.cli import app
from tests.browser.conftest import Open
from tests.browser.recorded import STEPS, drifted, post_recorded, post_step, records_of
from tests.services.live import live
from tests.services.receiver import receiving
from tests.services.test_sinks import Run
from tests.services.test_telemetry import samples

pytestmark = pytest.mark.slow
NONE = "\u2013"
LEVELS = {"warn": 1, "mask": 2, "pause": 3}


def test_all_of_them_tell_the_same_story(tmp_path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Run] = []

    def init(**options: Any) -> Run:
        begun.append(Run(options))
        return begun[-1]

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    with receiving() as receiver:
        pager = PagerSettings(webhooks=(WebhookSettings(name="ops", url=SecretStr(receiver.url)),))
        with live(tmp_path, pager=pager, wandb=WandbSettings(project="omni")) as url:
            monkeypatch.setenv("OMNI_RL_URL", url)
            with httpx.Client(base_url=url, timeout=30) as http:
                post_recorded(url)
                post_step(http, "recorded", STEPS, drifted(records_of(0), 0.9), {"reward": 0.5})
                (rest,) = http.get("/v1/incidents").json()
                line = http.get("/v1/runs/recorded").json()
                metrics = samples(http.get("/metrics").text)
            (told,) = receiver.wait(1)
            as_json = CliRunner().invoke(app, ["status", "--json"])
            as_text = CliRunner().invoke(app, ["status"])
            page = opened(url)
            row = page.get_by_role("region", name="Runs", exact=True).locator("tbody tr").first
            expect(row.locator("td").nth(1)).to_have_text("recorded")
            cells = row.locator("td").all_inner_texts()
            row.get_by_role("link").click()
            story = page.locator(f"article[data-incident='{rest['incident']}']")
            expect(story).to_be_visible()
            card, level = story.inner_text(), story.get_attribute("class") or ""
    figure = rest["figure"]
    assert (rest["run"], rest["kind"], rest["step"], rest["severity"]) == ("recorded", "drift", STEPS, "pause")
    # REST, webhook and status have one object.
    assert told.json["incident"] == rest
    assert json.loads(as_json.stdout)["incidents"] == [rest]
    assert (as_json.exit_code, as_text.exit_code) == (1, 1)
    words = as_text.stdout
    for part in (f"incident   {rest['incident']}  {rest['severity']}  {rest['run']}: {rest['what']}", rest["remedy"]):
        assert part in words
    # The run's line has what its incident has.
    assert (line["figure"], line["good"], line["incident"]) == (figure, rest["good"], rest["incident"])
    assert (line["drift"]["severity"], line["cause"]) == (rest["severity"], rest["cause"])
    # The page: the first screen's row, and the incident's card.
    cause = (rest["cause"] or "").replace("_", " ")
    assert cells[0] == f"■ {rest['severity'].upper()}"
    assert cells[2:4] == [figure["kind"], f"{figure['value']:.3g} over {figure['limit']:g}"]
    assert (cells[4], cells[5].split(" on ")[0]) == (cause or NONE, str(rest["good"]["step"]))
    assert cells[7] == "nobody"
    for part in (
        rest["what"],
        rest["remedy"],
        rest["guide"],
        f"at step {rest['step']}",
        "nobody has it in hand",
        cause,
    ):
        assert part in card
    assert rest["severity"] in level.split()
    # Prometheus: the incident, the run, and the figure with its limit.
    labels = {"run": rest["run"], "incident_kind": rest["kind"], "cause": rest["cause"] or "", "acknowledged": "no"}
    severity = LEVELS[rest["severity"]]
    assert metrics["omni_rl_incident_open", tuple(sorted(labels.items()))] == severity
    assert metrics["omni_rl_severity", (("run", rest["run"]),)] == severity
    assert metrics["omni_rl_step", (("run", rest["run"]),)] == rest["step"]
    of = {"kind": figure["kind"], "run": rest["run"]}
    assert metrics[f"omni_rl_{figure['metric']}", tuple(sorted(of.items()))] == pytest.approx(figure["value"])
    of |= {"metric": figure["metric"], "severity": rest["severity"]}
    assert metrics["omni_rl_limit", tuple(sorted(of.items()))] == figure["limit"]
    # W&B: the alert, and the step's figures.
    (run,) = begun
    (alert,) = run.alerts
    assert (run.options["group"], alert["level"]) == (rest["run"], "ERROR")
    assert alert["title"] == f"{rest['run']}: {rest['cause'] or rest['kind']}"
    assert alert["text"].splitlines() == [rest["what"], f"What to do: {rest['remedy']}", rest["guide"]]
    logged = run.logged[rest["step"]]
    assert logged[f"{figure['kind']}/{figure['metric']}"] == pytest.approx(figure["value"])
    assert (logged["severity"], logged["train/reward"], run.summary["incidents"]) == (severity, 0.5, rest["incident"])
