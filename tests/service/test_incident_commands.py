"""What needs a person, on the command line: of a service, and of a ledger that nobody serves."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from omni_rl.api.jobs import GrpoParameters
from omni_rl.api.runs import RunBody
from omni_rl.client import Client
from omni_rl.errors import ConfigError, NotFoundError
from tests.pinned.command_outputs import printed
from tests.services.live import live
from tests.services.test_verdicts import CLEAN, SHIFTED


@dataclass(frozen=True)
class Service:
    url: str
    ledger: str

    def said(self, *arguments: str) -> tuple[int, str]:
        return printed(*arguments, env={"OMNI_RL_URL": self.url})


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A run that parted at its second step, and one that is calm."""
    directory = tmp_path_factory.mktemp("service")
    with live(directory) as url, Client(url) as client:
        for run, steps in (("math", (CLEAN, SHIFTED)), ("calm", (CLEAN,))):
            client.create_run(RunBody(run=run, model="m", dtype="bfloat16"))
            for number, rows in enumerate(steps):
                client.put_part(run, 1, number, 0, rows)
                client.seal(run, 1, number)
        yield Service(url, f"sqlite:///{directory / 'ledger.db'}")


def test_the_status_shows_what_is_open_and_exits_1(broken: Service) -> None:
    code, text = broken.said("status")
    assert code == 1
    assert "incident   1  pause  math: Step 1, text: " in text
    assert "Align labels" in text
    code, text = broken.said("status", "--json")
    assert (code, [one["incident"] for one in json.loads(text)["incidents"]]) == (1, [1])


def test_incidents_are_listed_and_the_exit_code_says_whether_one_is_open(broken: Service) -> None:
    code, text = broken.said("incidents")
    assert code == 1
    assert text.startswith("1    pause math  drift, since 20")
    assert broken.said("incidents", "--run", "calm") == (0, "none is open\n")
    code, text = broken.said("incidents", "--json")
    assert [one["cause"] for one in json.loads(text)] == ["token_shift"]
    with pytest.raises(ConfigError, match="kind 'nothing': drift, update, sync, engine, silence"):
        broken.said("incidents", "--kind", "nothing")


def test_an_incident_is_shown_taken_and_written_to(broken: Service) -> None:
    code, text = broken.said("incident", "1", "--acknowledge", "--note", "a tokenizer was changed")
    assert code == 0
    assert "(local has it in hand)" in text
    assert "what to do: Align labels" in text
    assert "docs/operating.md#token_shift" in text
    assert "local: a tokenizer was changed" in text
    code, text = broken.said("incident", "1", "--json")
    assert [note["text"] for note in json.loads(text)["notes"]] == ["a tokenizer was changed"]


def test_runs_that_need_a_person_come_first(broken: Service) -> None:
    code, text = broken.said("runs")
    first, second = text.splitlines()
    assert code == 0
    assert first.startswith("pause     math  step 1 at 20")
    assert "limit" in first
    assert "clean to step 0" in first
    assert second.startswith("ok        calm  step 0 at 20")
    code, text = broken.said("runs", "--search", "AL", "--json")
    assert [run["run"] for run in json.loads(text)] == ["calm"]
    assert broken.said("runs", "--need", "halted") == (0, "no run\n")
    with pytest.raises(ConfigError, match="need nothing: halted, pause, silent"):
        broken.said("runs", "--need", "nothing")


def test_a_ledger_is_read_without_a_service(broken: Service, tmp_path: Path) -> None:
    nowhere = {"OMNI_RL_URL": "http://127.0.0.1:1"}
    _, served = broken.said("runs", "--json")
    _, read = printed("runs", "--json", "--ledger", broken.ledger, env=nowhere)
    assert json.loads(read) == json.loads(served)
    _, served = broken.said("incidents", "--json", "--all")
    code, read = printed("incidents", "--json", "--all", "--ledger", broken.ledger, env=nowhere)
    assert (code, json.loads(read)) == (1, json.loads(served))
    code, text = printed("export", "math", "--out", str(tmp_path / "out"), "--ledger", broken.ledger, env=nowhere)
    assert code == 0
    assert f"wrote {tmp_path / 'out' / 'incidents.parquet'}" in text
    assert pq.read_table(tmp_path / "out" / "steps.parquet")["step"].to_pylist() == [0, 1]


def test_a_ledger_or_a_run_that_is_not_there_makes_none(broken: Service, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lost\.db is not there"):
        printed("runs", "--ledger", f"sqlite:///{tmp_path / 'lost.db'}")
    assert not (tmp_path / "lost.db").exists()
    with pytest.raises(NotFoundError, match="there is no run nobody"):
        printed("export", "nobody", "--out", str(tmp_path / "x"), "--ledger", broken.ledger)


def test_jobs_are_listed_and_stopped(broken: Service) -> None:
    assert broken.said("jobs") == (0, "no job\n")
    with Client(broken.url) as client:
        job = client.submit(GrpoParameters(run="digits")).job
    assert broken.said("jobs")[1].startswith(f"{job}  grpo  running")
    assert broken.said("stop", job) == (0, f"{job} stopped\n")
    _, text = broken.said("jobs", "--json")
    assert [one["status"] for one in json.loads(text)] == ["stopped"]
