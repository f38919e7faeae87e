"""What `/metrics` shows after a restart: the newest runs that go on, their pace, and the latest sync with weights."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from omni_rl_services.coordinator.followers import show_again
from omni_rl_services.coordinator.lines import Line
from omni_rl_services.coordinator.runs import LiveRun
from omni_rl_services.coordinator.telemetry import Telemetry

from omni_rl.api.runs import RunBody
from omni_rl.consistency.limits import Severity
from omni_rl.consistency.policy import Drift
from omni_rl.ledger.types import StepKey
from omni_rl.sync.result import SyncResult
from tests.services.test_run_metrics import shown

pytestmark = pytest.mark.anyio


def run(name: str, sealed: float | None, step: int = 50, activity: Any = "live") -> LiveRun:
    found = LiveRun.of(RunBody(run=name, model="m", dtype="bfloat16"), 1.0, 3)
    found.latest, found.activity, found.line = (2, step), activity, Line(2, step, sealed)
    found.drift = Drift(Severity.MASK)
    return found


class Kept:
    """A ledger whose steps are ten seconds apart, the earliest excepted, and its syncs."""

    def __init__(self, *syncs: Any) -> None:
        self.found = list(syncs)
        self.asked: list[Any] = []

    async def step(self, key: StepKey) -> Any:
        verdict = {"figures": {"text": {"ess": 0.25, "gen_kl_error": None}}}
        kinds = {"overall": SimpleNamespace(tokens=4, ess=0.5), "text": SimpleNamespace(tokens=4, ess=0.75)}
        return SimpleNamespace(
            by_kind=kinds, verdict=verdict, row=SimpleNamespace(training={"reward": 0.5}, sealed=10.0 * key.step)
        )

    async def steps(self, run: str, attempt: int, *, after: int, limit: int) -> list[Any]:
        self.asked.append((run, attempt, after, limit))
        numbers = range(max(0, after + 1), after + 1 + limit)
        return [SimpleNamespace(key=StepKey(run, attempt, n), sealed=10.0 * n) for n in numbers]

    async def syncs(self, *, limit: int) -> list[Any]:
        self.asked.append(("syncs", limit))
        return self.found[:limit]


async def after(runs: list[LiveRun], count: int, kept: Kept) -> Telemetry:
    telemetry = Telemetry(16)
    store: Any = kept
    await show_again(runs, count, store, telemetry)
    return telemetry


async def test_the_runs_of_the_newest_steps_that_are_not_over_are_shown() -> None:
    waiting = run("waiting", None)
    waiting.latest = None
    runs = [run("old", 5.0), run("new", 9.0), run("none", None), run("over", 99.0, activity="ended"), waiting]
    for count, names in ((1, {"new"}), (2, {"new", "old"}), (3, {"new", "old", "none"}), (9, {"new", "old", "none"})):
        telemetry = await after(runs, count, Kept())
        assert {dict(labels)["run"] for labels in shown(telemetry, "severity")} == names
    silent = await after([run("quiet", 9.0, activity="silent")], 1, Kept())
    assert {dict(labels)["run"] for labels in shown(silent, "severity")} == {"quiet"}


async def test_a_run_has_its_figures_its_severity_and_the_pace_of_its_newest_33_steps() -> None:
    kept = Kept()
    telemetry = await after([run("math", 9.0)], 1, kept)
    of = (("run", "math"),)
    assert kept.asked[0] == ("math", 2, 17, 33)
    names = ("attempt", "step", "severity", "last_step_timestamp_seconds", "step_interval_seconds")
    assert [shown(telemetry, name)[of] for name in names] == [2, 50, 2, 500, 10]
    ess = {dict(labels)["kind"]: value for labels, value in shown(telemetry, "ess").items()}
    assert ess == {"overall": 0.5, "text": 0.25}, "the verdict's own, where it has one"
    assert {dict(labels)["figure"]: value for labels, value in shown(telemetry, "training").items()} == {"reward": 0.5}
    assert shown(await after([run("math", 9.0, step=0)], 1, Kept()), "step_interval_seconds") == {}


RESULT = SyncResult("s", "committed", "v", "v", bytes=100, origin="trainer")


def sync(result: SyncResult | None, finished: float | None = 50.0) -> Any:
    stored = None if result is None else result.to_json()
    return SimpleNamespace(record=SimpleNamespace(result=stored, finished=finished))


@pytest.mark.parametrize(
    ("found", "bytes_"),
    [
        ([sync(RESULT)], 100),
        ([sync(replace(RESULT, bytes=7)), sync(RESULT)], 7),
        ([sync(replace(RESULT, bytes=7, origin=None)), sync(RESULT)], 100),
        ([sync(None), sync(RESULT)], 100),
        ([sync(replace(RESULT, bytes=7), None), sync(RESULT)], 100),
        ([sync(None)] * 31 + [sync(RESULT)], 100),
        ([sync(None)] * 32 + [sync(RESULT)], 0),
        ([], 0),
    ],
)
async def test_the_latest_sync_that_brought_weights_is_shown_if_it_is_among_the_newest_32(
    found: list[Any], bytes_: int
) -> None:
    telemetry = await after([], 1, Kept(*found))
    assert shown(telemetry, "sync_bytes")[()] == bytes_
    assert shown(telemetry, "last_sync_timestamp_seconds")[()] == (50 if bytes_ else 0)
