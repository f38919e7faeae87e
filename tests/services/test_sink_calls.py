"""What each sink is handed, value by value, and how a sink that fails or is slow is told of."""

import asyncio
import logging
import math
import sys
import threading
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omni_rl_services.coordinator import sinks
from omni_rl_services.coordinator.followers import Followers
from omni_rl_services.coordinator.open_attempts import OpenAttempts
from omni_rl_services.coordinator.settings import CoordinatorSettings, TensorboardSettings, WandbSettings
from omni_rl_services.coordinator.sinks import Aside, AttemptStart, SinkStep, Training
from omni_rl_services.coordinator.telemetry import Telemetry
from omni_rl_services.coordinator.tensorboard_sink import TensorboardSink
from omni_rl_services.coordinator.wandb_sink import WandbSink, identity

from omni_rl.api.events import EventAnswer
from omni_rl.api.incidents import IncidentAnswer
from omni_rl.consistency.limits import Severity
from omni_rl.errors import NotFoundError
from omni_rl.ledger.types import Incident
from tests.services.test_messages import OPEN, changed
from tests.services.test_run_lines import live

START = AttemptStart("math", 2, 100.5)
STEP = SinkStep(START, 12, Severity.MASK, {"overall": {"ess": 0.5}}, {"reward": 1.0, "kl": None}, 700.0, {})


class Recording:
    """A sink that keeps what it is handed, and fails where it is told to."""

    def __init__(self, *failures: Exception) -> None:
        self.got: list[tuple[Any, ...]] = []
        self.failures = list(failures)

    def _take(self, *what: Any) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.got.append(what)

    def step(self, step: SinkStep) -> None:
        self._take("step", step)

    def learnt(self, of: AttemptStart, step: int, training: Training) -> None:
        self._take("learnt", of, step, dict(training))

    def incident(self, of: AttemptStart, incident: IncidentAnswer) -> None:
        self._take("incident", of, incident.incident)

    def close(self) -> None:
        self._take("close")


def test_a_sink_has_every_call_in_its_order_and_is_closed_after_the_last() -> None:
    sink = Recording()
    aside = Aside(sink, "mine")
    aside.step(STEP)
    aside.learnt(START, 12, {"kl": 0.1})
    aside.incident(START, OPEN)
    aside.close()
    assert sink.got == [("step", STEP), ("learnt", START, 12, {"kl": 0.1}), ("incident", START, 7), ("close",)]
    assert aside.count() == 0


def test_what_a_sink_misses_is_told_the_first_second_fourth_and_eighth_time(caplog: pytest.LogCaptureFixture) -> None:
    aside = Aside(Recording(*[ConnectionError("no network")] * 10), "mine")
    for _ in range(11):
        aside.step(STEP)
    aside.close()
    assert aside.count() == 10
    assert [record.getMessage() for record in caplog.records] == [
        f"sink mine missed {count} calls so far: ConnectionError: no network" for count in (1, 2, 4, 8)
    ]


def test_a_sink_that_cannot_be_closed_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    Aside(Recording(ConnectionError("still none")), "mine").close()
    assert "sink mine did not close: still none" in caplog.text


class Hanging(Recording):
    """A sink that holds its first call until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go, self.entered = threading.Event(), threading.Event()

    def step(self, step: SinkStep) -> None:
        self.entered.set()
        self.go.wait(30)
        super().step(step)


def test_a_sink_may_be_1024_calls_behind(caplog: pytest.LogCaptureFixture) -> None:
    hanging = Hanging()
    aside = Aside(hanging, "slow")
    aside.step(STEP)
    assert hanging.entered.wait(10)
    for _ in range(1024):
        aside.learnt(START, 1, {})
    assert aside.count() == 0
    aside.learnt(START, 1, {})
    assert aside.count() == 1
    assert "sink slow missed 1 calls so far: it is too slow" in caplog.text
    hanging.go.set()
    aside.close()
    assert len(hanging.got) == 1 + 1024 + 1
    assert hanging.got[-1] == ("close",)


@pytest.mark.parametrize("behind", [0, 1])
def test_a_sink_that_hangs_is_left_behind_at_the_end(monkeypatch: pytest.MonkeyPatch, behind: int) -> None:
    """It is left behind whether there is a place in its queue for the end or not."""
    monkeypatch.setattr(sinks, "BACKLOG", 1)
    monkeypatch.setattr(sinks, "CLOSE_SECONDS", 0.01)
    hanging = Hanging()
    aside = Aside(hanging, "slow")
    aside.step(STEP)
    assert hanging.entered.wait(10)
    for _ in range(behind):
        aside.step(STEP)
    aside.close()
    assert hanging.got == []
    hanging.go.set()


def test_what_is_open_for_32_attempts_stays_open() -> None:
    opened: list[AttemptStart] = []
    ended: list[int] = []

    def opening(of: AttemptStart) -> int:
        opened.append(of)
        return of.attempt

    attempts = OpenAttempts(opening, ended.append)
    for number in range(32):
        assert attempts.one(AttemptStart("math", number, 0.0)) == number
    assert attempts.one(AttemptStart("math", 0, 0.0)) == 0
    assert (len(opened), ended) == (32, [])
    attempts.one(AttemptStart("math", 32, 0.0))
    assert (len(opened), ended) == (33, [1]), "the one that was used longest ago"
    attempts.one(AttemptStart("math", 1, 1.0))
    assert ended == [1, 2]
    attempts.close()
    assert sorted(ended) == sorted([1, 2, *range(3, 33), 0, 1])


class WandbRun:
    def __init__(self, options: dict[str, Any]) -> None:
        self.options, self.calls, self.summary = options, list[Any](), dict[str, Any]()

    def define_metric(self, *names: str, **options: Any) -> None:
        self.calls.append(("define", *names, options))

    def log(self, values: dict[str, Any]) -> None:
        self.calls.append(("log", values))

    def alert(self, **told: Any) -> None:
        self.calls.append(("alert", told))

    def finish(self) -> None:
        self.calls.append("finish")


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[WandbRun]:
    begun: list[WandbRun] = []

    def init(**options: Any) -> WandbRun:
        begun.append(WandbRun(options))
        return begun[-1]

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    return begun


def test_wandb_has_a_run_for_each_attempt_with_every_figure_over_its_step(wandb: list[WandbRun]) -> None:
    sink = WandbSink(WandbSettings(project="omni", entity="team"))
    sink.step(STEP)
    sink.learnt(START, 13, {"loss": None})
    sink.close()
    (run,) = wandb
    assert run.options == {
        "project": "omni",
        "entity": "team",
        "id": identity(START),
        "resume": "allow",
        "name": "math-2",
        "group": "math",
        "reinit": "create_new",
    }
    (first, second, figures, learnt, last) = run.calls
    assert first == ("define", "step", {"hidden": True})
    assert second == ("define", "*", {"step_metric": "step"})
    logged = figures[1]
    assert math.isnan(logged.pop("train/kl"))
    assert logged == {"overall/ess": 0.5, "train/reward": 1.0, "severity": 2, "step": 12}
    assert learnt[1]["step"] == 13
    assert math.isnan(learnt[1]["train/loss"])
    assert last == "finish"


@pytest.mark.parametrize(("severity", "level"), [("pause", "ERROR"), ("mask", "WARN"), ("warn", "INFO")])
def test_wandb_alerts_as_urgently_as_the_incident_is(wandb: list[WandbRun], severity: str, level: str) -> None:
    sink = WandbSink(WandbSettings(project="omni"))
    sink.incident(START, changed(severity=severity))
    sink.incident(START, changed(severity=severity, cause=None))
    text = "Step 6: <b> & more.\nWhat to do: Look at it.\nguide#kernel"
    assert wandb[0].calls[2:] == [
        ("alert", {"title": f"math: {cause}", "text": text, "level": level}) for cause in ("kernel", "drift")
    ]
    assert wandb[0].summary == {"incidents": 7}
    sink.incident(START, changed(ended=0.0))
    assert wandb[0].summary == {"incidents": 0}
    assert len(wandb[0].calls) == 4


def test_an_attempt_has_an_identity_of_its_own_that_is_always_the_same() -> None:
    assert len(identity(START)) == 16
    others = [replace(START, run="code"), replace(START, attempt=3), replace(START, created=100.25)]
    assert len({identity(START), *map(identity, others)}) == 4
    # sha256 of "math/2/100.5", by coreutils
    assert identity(START) == "9c1f98869045d527"


class Writer:
    def __init__(self, directory: str, filename_suffix: str) -> None:
        self.directory, self.suffix, self.calls = directory, filename_suffix, list[Any]()

    def add_scalar(self, *told: Any) -> None:
        self.calls.append(told)

    def add_text(self, *told: Any) -> None:
        self.calls.append(told)

    def flush(self) -> None:
        self.calls.append("flush")

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> list[Writer]:
    made: list[Writer] = []

    def writer(directory: str, filename_suffix: str) -> Writer:
        made.append(Writer(directory, filename_suffix))
        return made[-1]

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=writer))
    return made


def test_tensorboard_has_every_figure_at_its_step_and_time(board: list[Writer], tmp_path: Path) -> None:
    sink = TensorboardSink(TensorboardSettings(directory=tmp_path))
    sink.step(STEP)
    sink.incident(START, OPEN)
    sink.incident(START, changed(ended=0.0, step=None))
    sink.close()
    (writer,) = board
    assert writer.directory == str(tmp_path / "math" / "attempt-2")
    assert writer.suffix.startswith(".")
    assert len(writer.suffix) == 9
    assert writer.calls[:3] == [("overall/ess", 0.5, 12, 700.0), ("severity", 2, 12, 700.0), ("train/reward", 1.0, 12)]
    name, value, step = writer.calls[3]
    assert (name, math.isnan(value), step) == ("train/kl", True, 12)
    assert writer.calls[4:] == [
        "flush",
        ("incident 7", "Step 6: <b> & more.\n\n**What to do:** Look at it.", 6),
        "flush",
        ("incident 7", "It is over.", 0),
        "flush",
        "close",
    ]


class Known:
    """A ledger and a roster with one run and one incident."""

    def __init__(self, latest: tuple[int, int] | None, attempt: int | None) -> None:
        self.run = live()
        self.run.latest = latest
        self.attempt = attempt

    async def one(self, name: str) -> Any:
        return self.run

    async def incident(self, number: int) -> Any:
        if number != 7:
            raise NotFoundError(f"there is no incident {number}")
        about = ("math", "drift", "", self.attempt, 6, 1.0, 2.0, None, 3, "kernel", "Step 6.", "", None, 1.0, None)
        return Incident(number, *about, {}, (), None, (), {})  # type: ignore[arg-type]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("latest", "attempt", "what", "run", "number", "told"),
    [
        ((3, 1), 2, "opened", "math", 7, 2),
        ((3, 1), 0, "opened", "math", 7, 0),
        ((3, 1), None, "ended", "math", 7, 3),
        (None, 2, "opened", "math", 7, 2),
        (None, None, "opened", "math", 7, None),
        ((3, 1), 2, "grew", "math", 7, None),
        ((3, 1), 2, "acknowledged", "math", 7, None),
        ((3, 1), 2, "opened", None, 7, None),
        ((3, 1), 2, "opened", "math", 8, None),
    ],
)
async def test_sinks_are_told_of_incidents_of_a_run_as_they_open_and_end(
    caplog: pytest.LogCaptureFixture,
    latest: tuple[int, int] | None,
    attempt: int | None,
    what: str,
    run: str | None,
    number: int,
    told: int | None,
) -> None:
    sink, known = Recording(), Known(latest, attempt)
    fake: Any = known
    followers = Followers(CoordinatorSettings(), [sink], fake, fake, Telemetry(1))
    event = EventAnswer(id=1, at=0.0, kind="incident", run=run, data={"what": what, "incident": number})
    followers.heard(event)
    await asyncio.sleep(0)
    await followers.close()
    expected = [] if told is None else [("incident", AttemptStart("math", told, 1.0), 7)]
    assert sink.got == [*expected, ("close",)]
    warned = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert bool(warned) is (number == 8)
