"""Rows of the ledger as the API answers them, and what is read of a ledger that nobody has open."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from omni_rl_services.coordinator.checks import PROVEN, judged
from omni_rl_services.coordinator.reading import Reading
from omni_rl_services.coordinator.views import (
    alarm_answer,
    check_answer,
    check_document,
    incident_answer,
    run_line,
    sync_answer,
    timeline_answer,
    told,
)

from omni_rl.api.incidents import AcknowledgementAnswer, ActionAnswer, NoteAnswer
from omni_rl.api.syncs import SyncAnswer
from omni_rl.bridge.seam import CheckResult, TokenLegs
from omni_rl.consistency.actions import Cause
from omni_rl.consistency.incidents import Figure, GoodStep
from omni_rl.consistency.limits import Limit, Severity
from omni_rl.consistency.need import Need
from omni_rl.consistency.policy import Drift
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.run_list import Listed
from omni_rl.ledger.types import Incident, KeptCheck, Run, StepKey, Timeline
from omni_rl.sync.result import SyncResult
from omni_rl.sync.states import Phase
from tests.services.conftest import Serve
from tests.services.test_run_lines import live
from tests.services.test_verdicts import CLEAN, RUN, SHIFTED, step

INCIDENT = Incident(
    7,
    "math",
    "drift",
    "",
    2,
    9,
    5.0,
    6.0,
    None,
    3,
    "kernel",
    "Step 9.",
    "It is so.",
    Figure("text", "gen_kl_error", 0.5, 0.1),
    5.0,
    GoodStep(2, 8, "v"),
    {"media": {"equal": True}},
    (ActionAnswer(at=5.0, what="the trainer was told"), ActionAnswer(at=6.0, what="generation is stopped")),
    AcknowledgementAnswer(by="ann", at=5.5),
    (NoteAnswer(by="bob", at=5.6, text="mine"),),
    {"ops": "open"},
)


def test_an_incident_has_all_that_is_known_of_it() -> None:
    found = incident_answer(INCIDENT).model_dump()
    assert found.pop("remedy")
    assert found == {
        "incident": 7,
        "run": "math",
        "kind": "drift",
        "what": "Step 9. It is so.",
        "guide": "docs/operating.md#kernel",
        "severity": "pause",
        "cause": "kernel",
        "attempt": 2,
        "step": 9,
        "figure": {"kind": "text", "metric": "gen_kl_error", "value": 0.5, "limit": 0.1},
        "good": {"attempt": 2, "step": 8, "weights": "v"},
        "evidence": {"media": {"equal": True}},
        "actions": [{"at": 5.0, "what": "the trainer was told"}, {"at": 6.0, "what": "generation is stopped"}],
        "acknowledged": {"by": "ann", "at": 5.5},
        "notes": [{"by": "bob", "at": 5.6, "text": "mine"}],
        "opened": 5.0,
        "changed": 6.0,
        "ended": None,
    }
    bare = replace(INCIDENT, figure=None, good=None, acknowledged=None, cause=None, kind="engine", ended=9.0)
    found = incident_answer(bare, "https://guide").model_dump()
    assert found["figure"] is found["good"] is found["acknowledged"] is None
    assert (found["guide"], found["ended"]) == ("https://guide#engine", 9.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_figure_that_is_no_number_is_null(value: float) -> None:
    found = incident_answer(replace(INCIDENT, figure=Figure("text", "ess", value, 0.1))).figure
    assert found is not None
    assert (found.value, found.limit) == (None, 0.1)


def test_an_alarm_of_version_0_1_has_what_was_done_last() -> None:
    found = alarm_answer(INCIDENT)
    assert (found.alarm, found.run, found.severity, found.action) == (7, "math", "pause", "generation is stopped")
    assert (found.sentence, found.opened, found.closed) == ("Step 9. It is so.", 5.0, None)
    bare = alarm_answer(replace(INCIDENT, run=None, actions=(), ended=9.0))
    assert (bare.run, bare.action, bare.closed) == ("", "", 9.0)


def test_a_line_has_its_incidents_cause_or_else_the_drifts() -> None:
    run = live()
    run.drift = Drift(Severity.MASK, cause=Cause.ROUNDING)
    run.line = replace(run.line, recent=((3, 0.5, None), (4, None, 0.25)), good=GoodStep(1, 2, "v"))
    row = Run("math", 1.0, {})
    line = run_line(run, Listed(row, Need.MASK, INCIDENT))
    assert (line.need, line.cause, line.incident) == ("mask", "kernel", 7)
    assert line.acknowledged is not None
    assert line.acknowledged.by == "ann"
    line = run_line(run, Listed(row, Need.OK, None))
    assert (line.need, line.cause, line.incident, line.acknowledged) == ("ok", "rounding", None, None)
    assert line.recent.model_dump() == {"step": (3, 4), "reward": (0.5, None), "drift": (None, 0.25)}
    assert line.good is not None
    assert (line.good.step, line.figure) == (2, None)


def test_a_timeline_has_null_where_there_is_no_number() -> None:
    numbers = np.array([1, 2], np.int64)
    values = {"ess": np.array([0.5, np.nan])}
    found = timeline_answer(
        "math", 2, Timeline("text", 3, numbers, numbers + 2, numbers, numbers / 2, numbers, numbers * 0, values, values)
    )
    assert found.model_dump() == {
        "run": "math",
        "attempt": 2,
        "kind": "text",
        "width": 3,
        "first": [1, 2],
        "last": [3, 4],
        "steps": [1, 2],
        "sealed": [0.5, 1.0],
        "severity": ["warn", "mask"],
        "broken": [0, 0],
        "low": {"ess": [0.5, None]},
        "high": {"ess": [0.5, None]},
    }


RESULT = SyncResult("s", "committed", "v2", "v2", elements=5, elements_proven=5, seconds={"apply": 0.5})


@pytest.mark.parametrize(
    ("origin", "source"),
    [("published", "published"), ("directory", "directory"), ("trainer", "trainer"), (None, "served")],
)
def test_a_syncs_result_says_whose_weights_they_are_where_it_is_known(origin: Any, source: str) -> None:
    answer = SyncAnswer(
        sync="s", state="finished", phase=Phase.IDLE, key=None, source="served", started=1.0, finished=2.0, phases=[]
    )
    agreement = {"overall": {"tokens": 4.0, "ess": math.nan}}
    found = told(answer, replace(RESULT, origin=origin, agreement=agreement, mismatches=("a",), nonfinite=("b",)))
    assert (found.source, found.outcome, found.version, found.elements_proven) == (source, "committed", "v2", 5)
    assert (found.mismatches, found.nonfinite) == (["a"], ["b"])
    assert found.agreement == {"overall": {"tokens": 4.0, "ess": None}}
    assert told(answer, RESULT).agreement is None


FIGURES = {"overall": {"tokens": 100.0, "gen_kl_error": 0.5}}
LIMITS = {"overall": {"gen_kl_error": Limit(0.1, 0.2, 0.3)}}


@pytest.mark.parametrize(
    ("found", "severity", "reason"),
    [
        (CheckResult("v", FIGURES), Severity.PAUSE, "overall: gen_kl_error 0.5 is over 0.3 (pause)"),
        (CheckResult("v", FIGURES, compared=False), Severity.PAUSE, "overall: gen_kl_error 0.5 is over 0.3 (pause)"),
        (CheckResult("v", {}), Severity.UNJUDGED, "nothing was judged: no token counts, or too few to say"),
        (CheckResult("v", {}, compared=False), Severity.UNJUDGED, PROVEN),
        (
            CheckResult("v", {}, cause=Cause.CORRUPT_WEIGHTS, sentence="wrong bytes", compared=False),
            Severity.PAUSE,
            "wrong bytes",
        ),
    ],
)
def test_a_check_is_judged_by_its_figures_or_by_what_was_proven(
    found: CheckResult, severity: Severity, reason: str
) -> None:
    judgement = judged(found, LIMITS)
    assert (judgement.severity, judgement.reason) == (severity, reason)


def test_a_check_is_stored_with_null_for_what_is_no_number() -> None:
    legs = {"batch_vs_alone": (0.5, math.nan, math.inf)}
    result = CheckResult(
        "v",
        {"overall": {"ess": math.nan}},
        {"leg": {"overall": {"ess": math.inf}}},
        Cause.KERNEL,
        "so",
        ({"check": "media", "result": "clear"},),
        1.5,
        (TokenLegs("a", "text", legs),),
    )
    document = check_document(result, judged(CheckResult("v", FIGURES), LIMITS))
    assert document["figures"] == {"overall": {"ess": None}}
    assert document["legs"] == {"leg": {"overall": {"ess": None}}}
    assert document["answers"] == [{"sample": "a", "kind": "text", "legs": {"batch_vs_alone": [0.5, None, None]}}]
    assert (document["cause"], document["seconds"], document["compared"]) == ("kernel", 1.5, True)
    of_step = check_answer(KeptCheck(3, 9.0, StepKey("math", 2, 9), document))
    assert (of_step.check, of_step.at, of_step.run, of_step.attempt, of_step.step) == (3, 9.0, "math", 2, 9)
    probe = check_answer(KeptCheck(4, 9.0, None, document))
    assert (probe.run, probe.step) == (None, None)


@pytest.mark.anyio
async def test_a_ledger_that_nobody_has_open_is_read_as_its_coordinator_answers(serve: Serve, tmp_path: Any) -> None:
    async with serve() as served:
        for run, rows in (("calm", CLEAN), ("math", SHIFTED)):
            await served.http.post("/v1/runs", json={**RUN, "run": run})
            await step(served, 0, rows, run=run)
        await served.http.post("/v1/incidents/1/end")
        await step(served, 1, SHIFTED, run="math")
        lines = (await served.http.get("/v1/runs")).json()
        urgent = (await served.http.get("/v1/runs?sort=need")).json()
        incidents = (await served.http.get("/v1/incidents")).json()
        sync = (await served.http.post("/v1/syncs?wait=true", json={})).json()
    with Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}") as ledger:
        reading = Reading(ledger)
        assert [one.model_dump(mode="json") for one in reading.runs()] == lines
        assert [one.run for one in reading.runs(sort="need")] == [one["run"] for one in urgent] == ["math", "calm"]
        assert [one.run for one in reading.runs(1)] == ["math"]
        assert [one.run for one in reading.runs(search="AL")] == ["calm"]
        assert [one.run for one in reading.runs(needs=["ok"])] == ["calm"]
        assert [one.model_dump(mode="json") for one in reading.incidents()] == incidents
        assert [one.incident for one in reading.incidents()] == [2, 1]
        assert [one.incident for one in reading.incidents(1)] == [2]
        assert [one.incident for one in reading.incidents(is_open=False)] == [1]
        assert [one.incident for one in reading.incidents(is_open=True)] == [2]
        assert reading.incidents(run="calm") == reading.incidents(kind="sync") == []
        (kept,) = ledger.syncs()
        again = sync_answer(ledger.sync(kept.record.sync))
        assert (again.sync, again.state, again.phase, again.outcome) == (sync["sync"], "finished", "idle", "committed")
        unfinished = replace(kept, record=replace(kept.record, finished=None, result=None), transitions=())
        running = sync_answer(unfinished)
        assert (running.state, running.phase, running.outcome) == ("running", "idle", None)
