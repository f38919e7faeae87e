"""The coordinator killed during an incident: it is there after the restart, and who was told is not told again."""

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.services.receiver import receiving
from tests.services.test_telemetry import samples
from tests.services.test_verdicts import CLEAN, RUN, SHIFTED

START_SECONDS = 120.0


@contextmanager
def coordinator(directory: Path, hook: str) -> Iterator[tuple[httpx.Client, "subprocess.Popen[bytes]"]]:
    """A process of its own, and a client of it; killed at the end."""
    address, settings = directory / "address", directory / "settings.json"
    address.unlink(missing_ok=True)
    chosen: dict[str, Any] = {"ledger": f"sqlite:///{directory / 'ledger.db'}", "port": 0, "address_file": str(address)}
    chosen |= {"media": {"directory": str(directory / "media")}}
    chosen |= {"pager": {"webhooks": [{"name": "ops", "url": hook}]}}
    settings.write_text(json.dumps(chosen))
    process = subprocess.Popen([sys.executable, "-m", "omni_rl_services.coordinator", str(settings)])
    try:
        deadline = time.monotonic() + START_SECONDS
        while not address.exists():
            assert process.poll() is None, "the coordinator ended"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with httpx.Client(base_url=address.read_text(), timeout=60) as http:
            yield http, process
    finally:
        process.kill()
        process.wait()


def post(http: httpx.Client, number: int, rows: list[dict[str, Any]]) -> None:
    at = f"/v1/runs/math/attempts/1/steps/{number}"
    http.put(f"{at}/parts/0", json={"schema": "omni_rl.step/1", "records": rows}).raise_for_status()
    http.post(f"{at}/seal", json={}).raise_for_status()


def until_kept(directory: Path) -> None:
    """Wait until the ledger says who was told: one killed before that tells again, which webhooks know by its key."""
    with sqlite3.connect(directory / "ledger.db") as ledger:
        while ledger.execute("SELECT count(*) FROM incidents WHERE told = '{}'").fetchone() != (0,):
            time.sleep(0.01)


def open_incidents(http: httpx.Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = http.get("/v1/incidents", params={"open": True}).json()
    return found


@pytest.mark.slow
def test_a_killed_coordinator_has_its_incident_again_and_tells_of_it_once(tmp_path: Path) -> None:
    with receiving() as receiver:
        with coordinator(tmp_path, receiver.url) as (http, process):
            http.post("/v1/runs", json=RUN).raise_for_status()
            post(http, 0, CLEAN)
            post(http, 1, SHIFTED)
            (told,) = receiver.wait(1)
            (before,) = open_incidents(http)
            until_kept(tmp_path)
            process.kill()
            process.wait()
        assert told.json["incident"] == before
        with coordinator(tmp_path, receiver.url) as (http, _):
            assert open_incidents(http) == [before]
            metrics = samples(http.get("/metrics").text)
            assert metrics["omni_rl_severity", (("run", "math"),)] == 3
            post(http, 2, SHIFTED)
            assert [one["incident"] for one in open_incidents(http)] == [before["incident"]]
            # What is told next comes after everything that was to be told before it.
            http.post(f"/v1/incidents/{before['incident']}/acknowledge").raise_for_status()
            _, second = receiver.wait(2)
            assert (second.json["state"], second.json["incident"]["incident"]) == ("acknowledged", before["incident"])
        assert len(receiver.got) == 2


@pytest.mark.slow
def test_who_was_not_reached_before_the_kill_is_told_after_it(tmp_path: Path) -> None:
    with receiving() as receiver:
        receiver.answers = [503] * 1000
        with coordinator(tmp_path, receiver.url) as (http, _):
            http.post("/v1/runs", json=RUN).raise_for_status()
            post(http, 0, SHIFTED)
            receiver.wait(1)
        receiver.answers.clear()
        refused = len(receiver.got)
        with coordinator(tmp_path, receiver.url) as (http, _):
            received = receiver.wait(refused + 1)[-1]
            (incident,) = open_incidents(http)
            assert (received.json["state"], received.json["incident"]) == ("open", incident)
