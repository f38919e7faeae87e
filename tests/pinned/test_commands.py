"""What the commands of version 0.1.0 offered and printed is still there and still means the same; more may be."""

import json
from pathlib import Path

import pytest

from omni_rl.config import DemoSettings
from omni_rl.demo.run import run
from tests.demo.test_demo_loop import FakePolicies, Silent
from tests.pinned.command_outputs import every_help, offers, printed
from tests.pinned.job_lines import lines
from tests.pinned.kept_meaning import assert_agrees, lost, lost_shape
from tests.pinned.pinned_files import DATA, pinned_json

LEVELS = {"ok", "warn", "missing"}
OF_THE_MACHINE = ("/", "gpu")
"""How an item of doctor's begins that a machine has or has not."""


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    return every_help()


def test_every_command_and_option_is_there_with_its_type_and_default(helps: dict[str, str]) -> None:
    then = {command: offers(text) for command, text in pinned_json("help.json").items()}
    assert len(then) > 20
    assert sum(len(offered) for offered in then.values()) > 100
    assert lost(then, {command: offers(text) for command, text in helps.items()}) == []


def test_what_a_help_text_offers_is_read_from_it() -> None:
    """The test above cannot pass because nothing is found."""
    found = offers(pinned_json("help.json")["omni-rl submit"])
    assert found["kind"] == {"is": "arguments", "type": "<str>", "required": True}
    assert found["--set"] == {"is": "options", "type": "<list[str]>", "required": False}
    assert found["--no-follow"]["default"] == "no-follow"
    assert lost({"omni-rl": {"--gone": {"is": "options"}}}, {"omni-rl": found}) == ["/omni-rl/--gone is gone"]


def test_doctor_still_looks_at_the_same_things() -> None:
    code, text = printed("doctor", "--json")
    then, now = pinned_json("doctor.json"), json.loads(text)
    assert code in (0, 1)
    assert lost_shape(then, now) == []
    assert {finding["level"] for finding in now} <= LEVELS
    looked = {finding["item"] for finding in then if not finding["item"].startswith(OF_THE_MACHINE)}
    assert looked <= {finding["item"] for finding in now}


def test_plan_still_gives_seconds_and_bytes_of_the_same_parts() -> None:
    """From the results that are committed; the model may tell them better by then."""
    code, text = printed("plan", "--json", "--bench", str(DATA.parents[2] / "bench"))
    then, now = pinned_json("plan.json"), json.loads(text)
    assert code == 0
    assert lost_shape(then, now) == []
    assert {cost["part"] for cost in then["costs"]} <= {cost["part"] for cost in now["costs"]}
    assert {room["what"] for room in then["rooms"]} <= {room["what"] for room in now["rooms"]}


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_a_jobs_lines_have_their_figures(algorithm: str) -> None:
    then, now = pinned_json("job_lines.json")[algorithm], lines()[algorithm]
    assert [line["step"] for line in now] == [line["step"] for line in then]
    for old, new in zip(then, now, strict=True):
        assert lost_shape(old, new) == []
        assert (new["severity"], new["dropped"]) == (old["severity"], old["dropped"])
        assert new["reward"] == pytest.approx(old["reward"])


def test_a_demo_still_leaves_such_a_report(tmp_path: Path) -> None:
    """By the demo's loop against two hand-written policies, with as many steps; real ones: tests/e2e/test_demo.py."""
    settings = DemoSettings(steps=1, prompts_per_kind=2, max_tokens=8)
    now = json.loads(run(settings, FakePolicies(), Silent()).write(tmp_path).read_text())
    then = pinned_json("report.json")
    assert lost_shape(then, now) == []
    for report in (then, now):
        assert_agrees(report)
