"""From a drifting step to whoever is woken, with the real programs: a coordinator, Prometheus, Alertmanager."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from omni_rl.service.ports import free_port
from tests.deploy.compose import ROOT
from tests.services.live import live
from tests.services.receiver import Receiver, receiving
from tests.services.test_verdicts import CLEAN, RUN, SHIFTED

pytestmark = pytest.mark.slow
PROMETHEUS = ROOT / "deploy" / "prometheus"
PROGRAMS = ("prometheus", "prometheus-alertmanager")
PATIENCE_SECONDS = 120.0
DOWN_SECONDS = 6.0
"""How long the coordinator is away: several scrapes and evaluations."""


@contextmanager
def running(*command: str) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
        assert process.poll() is None, f"{command[0]} ended"
    finally:
        process.kill()
        process.wait()


@contextmanager
def alerting(directory: Path, coordinator: int, receiver: str) -> Iterator[str]:
    """Prometheus and Alertmanager as they are deployed, but for addresses, and a second in place of each interval.

    Yields where Prometheus is.
    """
    files = {name: yaml.safe_load((PROMETHEUS / f"{name}.yml").read_text()) for name in ("prometheus", "alertmanager")}
    ports = {name: free_port() for name in files}
    scraping, routing = files["prometheus"], files["alertmanager"]
    scraping["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (job,) = (one for one in scraping["scrape_configs"] if one["job_name"] == "coordinator")
    job["static_configs"] = [{"targets": [f"127.0.0.1:{coordinator}"]}]
    del job["authorization"]
    scraping["scrape_configs"] = [job]
    scraping["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": [f"127.0.0.1:{ports['alertmanager']}"]}]}]
    routing["route"] |= {"group_wait": "1s", "group_interval": "1s"}
    (hook,) = (one for found in routing["receivers"] for one in found.get("webhook_configs", []))
    del hook["url_file"]  # Debian's version does not know it yet
    hook["url"] = receiver
    shutil.copy(PROMETHEUS / "alerts.yml", directory)
    for name, content in files.items():
        (directory / f"{name}.yml").write_text(yaml.safe_dump(content))
    listen = {name: f"--web.listen-address=127.0.0.1:{port}" for name, port in ports.items()}
    manager = ("--cluster.listen-address=", f"--storage.path={directory / 'am'}", listen["alertmanager"])
    server = (f"--storage.tsdb.path={directory / 'tsdb'}", listen["prometheus"])
    with (
        running("prometheus-alertmanager", f"--config.file={directory / 'alertmanager.yml'}", *manager),
        running("prometheus", f"--config.file={directory / 'prometheus.yml'}", *server),
    ):
        yield f"http://127.0.0.1:{ports['prometheus']}"


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def told(receiver: Receiver, alert: str) -> list[dict[str, Any]]:
    """What the receiver was told of an alert, in order."""
    every = [one for received in receiver.got for one in received.json["alerts"]]
    return [one for one in every if one["labels"]["alertname"] == alert]


def post(url: str, number: int, rows: list[dict[str, Any]]) -> None:
    at = f"{url}/v1/runs/math/attempts/1/steps/{number}"
    with httpx.Client(timeout=PATIENCE_SECONDS) as http:
        http.put(f"{at}/parts/0", json={"schema": "omni_rl.step/1", "records": rows}).raise_for_status()
        http.post(f"{at}/seal", json={}).raise_for_status()


def test_an_alert_reaches_its_receiver_and_stands_while_the_coordinator_is_away(tmp_path: Path) -> None:
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        assert "CI" not in os.environ, f"{missing} are not installed; in CI nothing is left out"
        pytest.skip(f"needs {' and '.join(missing)}: apt install {' '.join(missing)}")
    port = free_port()
    with receiving() as receiver, alerting(tmp_path, port, receiver.url) as prometheus:
        with live(tmp_path, port=port) as url:
            httpx.post(f"{url}/v1/runs", json=RUN, timeout=PATIENCE_SECONDS).raise_for_status()
            post(url, 0, CLEAN)
            post(url, 1, SHIFTED)
            until(lambda: bool(told(receiver, "OmniRlDriftPause")))
            (first,) = told(receiver, "OmniRlDriftPause")
            assert (first["status"], first["labels"]["run"], first["labels"]["cause"]) == (
                "firing",
                "math",
                "token_shift",
            )
            assert first["annotations"]["runbook_url"] == "docs/operating.md#token_shift"
        until(lambda: up(prometheus) == ["0"])
        time.sleep(DOWN_SECONDS)
        assert firing(prometheus) == {"OmniRlDriftPause"}
        with live(tmp_path, port=port) as url:
            until(lambda: up(prometheus) == ["1"])
            time.sleep(DOWN_SECONDS)
            assert firing(prometheus) == {"OmniRlDriftPause"}
            assert [one["status"] for one in told(receiver, "OmniRlDriftPause")] == ["firing"], "told once"
            (incident,) = httpx.get(f"{url}/v1/incidents").json()
            httpx.post(f"{url}/v1/incidents/{incident['incident']}/end", timeout=PATIENCE_SECONDS).raise_for_status()
            until(lambda: told(receiver, "OmniRlDriftPause")[-1]["status"] == "resolved")


def up(prometheus: str) -> list[str]:
    found = httpx.get(f"{prometheus}/api/v1/query", params={"query": 'up{job="coordinator"}'}).json()
    return [one["value"][1] for one in found["data"]["result"]]


def firing(prometheus: str) -> set[str]:
    found = httpx.get(f"{prometheus}/api/v1/alerts").json()["data"]["alerts"]
    return {one["labels"]["alertname"] for one in found if one["state"] == "firing"}
