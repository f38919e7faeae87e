"""What W&B and TensorBoard are told: every figure, whenever it comes, and every incident, over restarts."""

import asyncio
import importlib.util
import math
import os
import struct
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omni_rl_services.coordinator import open_attempts, sinks
from omni_rl_services.coordinator.settings import TensorboardSettings, WandbSettings

from tests.services import test_verdicts as math_run
from tests.services.conftest import Serve
from tests.services.posted import DRIFTED, RUN, post, seal

pytestmark = pytest.mark.anyio


class Run:
    """A run of W&B's, as far as it is used: figures go by the axis that was defined."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.summary: dict[str, Any] = {}
        self.metrics: dict[str, dict[str, Any]] = {}
        self.logged: dict[int, dict[str, float]] = {}
        self.alerts: list[dict[str, str]] = []
        self.finished = False

    def define_metric(self, name: str, **options: Any) -> None:
        self.metrics[name] = options

    def log(self, values: dict[str, Any]) -> None:
        assert self.metrics["*"] == {"step_metric": "step"}, "W&B's own step drops what comes late"
        self.logged.setdefault(values["step"], {}).update(values)

    def alert(self, title: str, text: str, level: str) -> None:
        self.alerts.append({"title": title, "text": text, "level": level})

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Every run that W&B began."""
    found: list[Run] = []

    def init(**options: Any) -> Run:
        found.append(Run(options))
        return found[-1]

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    return found


async def drift(serve: Serve, step: int, **settings: Any) -> dict[str, Any]:
    """A coordinator that is started, judges a step, is told what was learnt from it, and ends; the verdict."""
    async with serve(**settings) as served:
        await served.http.post("/v1/runs", json=RUN)
        await post(served, DRIFTED, step=step)
        verdict = await seal(served, step=step, training={"reward": 0.5})
        at = f"/v1/runs/digits/attempts/1/steps/{step}/training"
        await served.http.put(at, json={"training": {"kl": 0.01, "loss": None}})
    return verdict


async def test_wandb_has_every_figure_in_one_run_over_a_restart(serve: Serve, begun: list[Run]) -> None:
    settings = {"wandb": WandbSettings(project="omni", entity="team")}
    verdicts = [await drift(serve, step, **settings) for step in (12, 13)]
    first, second = begun
    assert first.options == second.options
    assert (first.options["project"], first.options["entity"], first.options["name"]) == ("omni", "team", "digits-1")
    assert first.options["resume"] == "allow"
    assert first.options["id"]
    for run, step, verdict in zip(begun, (12, 13), verdicts, strict=True):
        values = run.logged[step]
        for kind, figures in verdict["figures"].items():
            for name, value in figures.items():
                assert values[f"{kind}/{name}"] == pytest.approx(math.nan if value is None else value, nan_ok=True)
        assert (values["train/reward"], values["train/kl"], values["severity"]) == (0.5, 0.01, 3)
        assert math.isnan(values["train/loss"])
        assert run.finished


async def test_wandb_alerts_once_of_an_incident_with_its_story(serve: Serve, begun: list[Run]) -> None:
    settings = {"wandb": WandbSettings(project="omni")}
    async with serve(**settings) as served:
        await served.http.post("/v1/runs", json=RUN)
        for step in (12, 13):
            await post(served, DRIFTED, step=step)
            await seal(served, step=step)
        (incident,) = (await served.http.get("/v1/incidents")).json()
    await drift(serve, 14, **settings)
    told = [alert for run in begun for alert in run.alerts]
    assert len(told) == 1, "what grew, and what was open before a restart, is told once"
    assert told[0]["title"] == "digits: unknown"
    assert told[0]["text"].startswith(incident["what"])
    assert incident["remedy"] in told[0]["text"]
    assert told[0]["level"] == "ERROR"


async def test_another_ledger_is_another_run(serve: Serve, begun: list[Run], tmp_path: Path) -> None:
    settings = {"wandb": WandbSettings(project="omni")}
    await drift(serve, 12, **settings)
    await drift(serve, 12, **settings, ledger=f"sqlite:///{tmp_path / 'other.db'}")
    assert begun[0].options["id"] != begun[1].options["id"]


class Writer:
    """A writer of tensorboardX's, as far as it is used."""

    def __init__(self, directory: str, filename_suffix: str) -> None:
        self.directory = directory
        self.scalars: list[tuple[str, int]] = []
        self.finished = False

    def add_scalar(self, name: str, value: float, step: int, at: float | None = None) -> None:
        assert not self.finished
        self.scalars.append((name, step))

    def add_text(self, name: str, text: str, step: int) -> None:
        assert not self.finished

    def flush(self) -> None:
        assert not self.finished

    def close(self) -> None:
        self.finished = True


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[Writer]:
    """Every writer of TensorBoard's that was made."""
    found: list[Writer] = []

    def made(directory: str, filename_suffix: str) -> Writer:
        found.append(Writer(directory, filename_suffix))
        return found[-1]

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=made))
    return found


async def test_what_was_used_longest_ago_is_closed_and_opened_again_when_more_comes(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, begun: list[Run], written: list[Writer], tmp_path: Path
) -> None:
    monkeypatch.setattr(open_attempts, "OPEN", 2)
    board = TensorboardSettings(directory=tmp_path)
    async with serve(wandb=WandbSettings(project="omni"), tensorboard=board) as served:

        async def tell(run: str, number: int, opened: int) -> None:
            """Judge a step, and wait until every sink has it, after so many have been opened."""
            await math_run.step(served, number, math_run.CLEAN, run=run)
            async with asyncio.timeout(10):
                while (
                    (len(begun), len(written)) != (opened, opened)
                    or number not in begun[-1].logged
                    or ("severity", number) not in written[-1].scalars
                ):
                    await asyncio.sleep(0.01)

        for opened, run in enumerate(("a", "b", "c"), 1):
            await served.http.post("/v1/runs", json={**math_run.RUN, "run": run})
            await tell(run, 0, opened)
        assert [one.finished for one in begun] == [one.finished for one in written] == [True, False, False]
        await tell("a", 1, 4)
        assert [one.finished for one in begun] == [one.finished for one in written] == [True, True, False, False]
        assert begun[3].options == begun[0].options
        assert written[3].directory == written[0].directory
    assert [one.finished for one in begun] == [one.finished for one in written] == [True] * 4


async def test_tensorboard_has_every_figure_over_a_restart(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("tensorboardX") is None:
        assert "CI" not in os.environ, "tensorboardX is in the lock; in CI nothing is left out"
        pytest.skip("tensorboardX is not installed: make setup")
    # The package takes its time to be imported on a machine that does other things.
    monkeypatch.setattr(sinks, "CLOSE_SECONDS", 120.0)
    settings = {"tensorboard": TensorboardSettings(directory=tmp_path / "board")}
    verdicts = {step: await drift(serve, step, **settings) for step in (12, 13)}
    found = dict(scalars(tmp_path / "board" / "digits" / "attempt-1"))
    for step, verdict in verdicts.items():
        for kind, figures in verdict["figures"].items():
            for name, value in figures.items():
                told = found[f"{kind}/{name}", step]
                assert told == pytest.approx(math.nan if value is None else value, rel=1e-6, nan_ok=True)
        assert (found["train/reward", step], found["severity", step]) == (0.5, 3)
        assert found["train/kl", step] == pytest.approx(0.01)
        assert math.isnan(found["train/loss", step])


def scalars(directory: Path) -> Iterator[tuple[tuple[str, int], float]]:
    """What event files say: records of a length, its checksum, an event, and its checksum."""
    from tensorboardX.proto.event_pb2 import Event  # type: ignore[import-untyped]

    for path in sorted(directory.iterdir()):
        rest = path.read_bytes()
        while rest:
            (size,) = struct.unpack_from("<Q", rest)
            event = Event.FromString(rest[12 : 12 + size])
            rest = rest[16 + size :]
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    yield (value.tag, event.step), value.simple_value
