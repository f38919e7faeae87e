"""A ledger of version 0.1.0, of either database, opens and says what it said."""

import json
import math
import zipfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from blake3 import blake3

from omni_rl.api.steps import StepAnswer
from omni_rl.client import Client
from omni_rl.client.bundle import bundle
from omni_rl.errors import FencedError
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.sync_journal import LedgerJournal
from tests.pinned.command_outputs import printed
from tests.pinned.kept_meaning import lost, lost_shape
from tests.pinned.ledger_answers import answers, exported
from tests.pinned.pinned_files import pinned_json, unpacked
from tests.postgres import Postgres
from tests.services.live import live


@dataclass(frozen=True)
class Opened:
    """A copy of a pinned ledger: its URL, the address of a coordinator that has it open, and where its media are."""

    url: str
    address: str
    directory: Path


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A copy of the pinned ledger that nobody has opened yet; its media are in `tmp_path`."""
    unpacked("ledger.zip", tmp_path)
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    (tmp_path / "ledger.db").unlink()
    empty = server.new_database()
    with psycopg.connect(empty.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute((unpacked("ledger_postgresql.zip", tmp_path) / "ledger.sql").read_bytes())
    return empty


@pytest.fixture
def opened(url: str, tmp_path: Path) -> Iterator[Opened]:
    with live(tmp_path, ledger=url) as address:
        yield Opened(url, address, tmp_path)


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """What was answered at version 0.1.0, by path, and what was exported."""
    found: dict[str, Any] = pinned_json("ledger_answers.json")
    return found


def test_every_answer_says_what_it_said(opened: Opened, told: dict[str, Any]) -> None:
    then = told["answers"]
    assert lost(then, answers(opened.address, then)) == []


def test_an_export_has_the_columns_and_rows_that_it_had(url: str, told: dict[str, Any], tmp_path: Path) -> None:
    assert lost(told["export"], exported(url, "digits", tmp_path / "export")) == []


def test_a_user_reads_the_run_and_its_incident(opened: Opened) -> None:
    with Client(opened.address) as client:
        assert {run.run: (run.attempt, run.step) for run in client.runs()} == {
            "digits": (2, 5),
            "words": (1, 0),
            "halted": (1, 0),
        }
        first, second = client.steps("digits", attempt=1), client.steps("digits", attempt=2)
        severities = [(line.step, line.severity) for line in first]
        assert severities == list(enumerate(["ok", "warn", "pause", "pause", "pause", "pause", "ok"]))
        assert [line.step for line in second] == [4, 5]
        assert first[2].training == {"reward": 0.375, "grad_norm": 1.5, "kl": 0.002}
        worst = _worst(client.step("digits", 1, 2))
        assert worst[0] == ("r0/image", "image", math.exp(1.0))
        assert _worst(client.step("digits", 1, 3))[0] == ("r0/image", "image", None)
        record = client.sample("digits", 1, 2, "r0/image").record
        assert record["token_texts"][0] == " token0"
        assert record["prompt_text"] == "a prompt with image: ünïcode"
        assert record["media"][0]["tensors"] == [{"name": "pixels", "rendered": "d1", "engine": "d1", "train": "d2"}]
        content = client.media(record["media"][0]["content"])
        assert content.startswith(b"\x89PNG")
        assert blake3(content).hexdigest() == record["media"][0]["content"]


def test_what_was_open_is_still_open(opened: Opened) -> None:
    """Alarms, the gate that a person closed, and the one that a run's cause halted."""
    with Client(opened.address) as client:
        state = client.state()
        assert {(alarm.run, alarm.cause) for alarm in state.alarms} == {("words", None), ("halted", "kernel")}
        assert state.gate.gate == "closed"
        assert {hold.holder for hold in state.gate.holds} == {"person", "run:halted"}
        assert client.run("halted").drift.gate == "halted"
        assert client.resume().gate == "open"


def test_the_journal_knows_what_was_decided(url: str) -> None:
    """The last coordinator died once it had decided for its sync: those weights are the committed ones."""
    with Ledger.open(url) as ledger, closing(LedgerJournal(ledger, "digits")) as journal:
        newest, undone, done = journal.records(10)
        assert [record.decision for record in (newest, undone, done)] == ["commit", "abort", "commit"]
        assert journal.unfinished() == newest
        assert newest.previous == done.slab
        committed = journal.committed()
        assert committed is not None
        assert (committed.path, committed.version) == ("/dev/shm/slab-3", "digits/1/3/cccccccccccccccc")
        assert journal.by_key("step-2") == undone
        assert undone.result is not None
        assert undone.result["outcome"] == "rolled_back"
        with pytest.raises(FencedError):
            journal.decide("sync-3", 5, "abort")
        assert journal.next_epoch(None) == 7


def test_the_run_goes_on_where_it_was(opened: Opened) -> None:
    """A new step and a new event get numbers behind the old ones."""
    with Client(opened.address) as client:
        before = client.event_page(after=0)[-1].id
        logprobs = [-0.5 - n for n in range(8)]
        answer = {"sample": "a", "ids": [1] * 8, "rollout_logprobs": logprobs, "train_logprobs": logprobs}
        client.put_part("digits", 2, 6, 0, [answer])
        assert client.seal("digits", 2, 6).verdict.severity == "ok"
        assert [line.step for line in client.steps("digits")] == [4, 5, 6]
        assert client.event_page(after=before)[0].id > before


def test_the_status_command_tells_what_it_told(opened: Opened) -> None:
    code, text = printed("status", "--json", env={"OMNI_RL_URL": opened.address})
    assert code == 1, "two alarms are open: version 0.1.0 said 0"
    then = pinned_json("status.json")
    assert lost_shape(then, json.loads(text)) == []
    code, text = printed("status", env={"OMNI_RL_URL": opened.address})
    assert code == 1
    for said in ("cluster    connected to", "gate       closed", "person: the node is taken down", "run        digits"):
        assert said in text


def test_a_bundle_is_written_from_it(opened: Opened, told: dict[str, Any], tmp_path: Path) -> None:
    with Client(opened.address) as client:
        path = bundle(client, "digits", 1, 2, None, tmp_path / "sample.zip", check=False)
    then = told["answers"]["/v1/runs/digits/attempts/1/steps/2/samples/r0%2Fimage"]
    with zipfile.ZipFile(path) as file:
        assert lost(then, json.loads(file.read("sample.json"))) == []
        assert f"media/{then['record']['media'][0]['content']}" in file.namelist()


def _worst(step: StepAnswer) -> list[tuple[str, str, float | None]]:
    return [(kept.sample, kept.kind, kept.error) for kept in step.verdict.worst]
