"""What the ledger answers about runs, attempts, steps, parts, checks and events; on SQLite and on PostgreSQL."""

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from omni_rl.consistency.comparison import compare_step
from omni_rl.errors import ConflictError, NotFoundError
from omni_rl.ledger import events
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.tables import attempts, checks, incidents, runs, syncs, updates
from omni_rl.ledger.types import NewEvent, NewStep, StepKey, WorstSamples
from omni_rl_bench.history import bring_in

from .steps import CONFIG, attempt_numbers, judged, post, records, sealed

KEY = StepKey("run", 0, 7)
SYNC = {"run": "run", "epoch": 1, "slab": "", "version": "", "mode": "", "started": 0.0}


@pytest.fixture
def run(ledger: Ledger) -> Ledger:
    ledger.put_run("run", CONFIG).result()
    return ledger


def test_attempts_have_their_first_and_last_sealed_step(run: Ledger) -> None:
    run.put_run("other", CONFIG).result()
    sealed(run, StepKey("other", 0, 1), records(rows=1))
    post(run, StepKey("run", 3, 5), records(rows=1))
    for step in (4, 0, 9):
        sealed(run, StepKey("run", 1, step), records(rows=1))
    post(run, StepKey("run", 1, 11), records(rows=1))
    found = run.attempts("run")
    assert [(one.attempt, one.first, one.last) for one in found] == [(1, 0, 9), (3, None, None)]
    assert found[0].started > found[1].started
    with pytest.raises(NotFoundError, match="there is no run none"):
        run.attempts("none")


def test_a_run_says_its_latest_step_of_the_newest_attempt_that_has_one(run: Ledger) -> None:
    assert (run.run("run").latest, run.run("run").sealed, attempt_numbers(run, "run")) == (None, None, ())
    for step in (3, 2):
        sealed(run, StepKey("run", 0, step), records(rows=1))
    sealed(run, StepKey("run", 1, 1), records(rows=1))
    post(run, StepKey("run", 2, 8), records(rows=1))
    found = run.run("run")
    assert (found.latest, attempt_numbers(run, "run")) == (StepKey("run", 1, 1), (0, 1, 2))
    assert found.sealed == run.step(StepKey("run", 1, 1)).row.sealed


def test_what_is_asked_about_a_run_that_is_not_there(run: Ledger) -> None:
    with pytest.raises(NotFoundError, match="there is no run none"):
        run.steps("none", 0)
    with pytest.raises(NotFoundError, match="run run has no attempt 0"):
        run.parts(KEY)
    post(run, KEY, records())
    with pytest.raises(NotFoundError, match="step 7 of run, attempt 0 is not sealed"):
        run.step(KEY)
    assert run.parts(KEY._replace(step=8)) == []


def test_a_part_has_its_size_until_its_records_are_dropped(run: Ledger) -> None:
    few, many = records(rows=1), records(rows=3, rank=1)
    sealed(run, KEY, few, many)
    assert [part.size for part in run.parts(KEY)] == [len(few.payload), len(many.payload)]
    for step in (8, 9):
        sealed(run, KEY._replace(step=step), few)
    assert [(part.rank, part.size, part.tokens) for part in run.step(KEY).parts] == [(0, 0, 20), (1, 0, 60)]
    assert [part.size for part in run.parts(KEY._replace(step=8))] == [len(few.payload)], "the two newest have theirs"
    assert run.records(KEY._replace(step=8))[0].digest == few.digest


def test_a_step_shows_the_kinds_that_its_run_names_and_the_worst_sample_first(ledger: Ledger) -> None:
    ledger.put_run("run", {"kinds": ["chart"]}).result()
    made = records(rows=4, tokens=70)
    sealed(ledger, KEY, made, worst=4)
    with ledger.database.write() as connection:
        connection.execute(sa.text("UPDATE figures SET kind = 'chart' WHERE kind = 'image'"))
        connection.execute(sa.text("UPDATE figures SET kind = 'another' WHERE kind = 'text'"))
    found = ledger.step(KEY)
    assert list(found.by_kind) == ["overall", "chart"]
    assert [sample.place for sample in found.samples] == [0, 1, 2, 3]
    means = [sample.figures["logprob_abs_diff_mean"] for sample in found.samples]
    assert means == sorted(means, reverse=True)
    for bins in found.by_position.values():
        assert [one.first for one in bins] == sorted(one.first for one in bins)
        assert all(one.first < one.last for one in bins)


def test_trainer_figures_that_come_later_are_added_to_those_of_the_seal(run: Ledger) -> None:
    sealed(run, KEY, records(), training={"reward": 0.5, "loss": 1.0})
    sealed(run, KEY._replace(step=8), records())
    sealed(run, KEY._replace(attempt=1), records())
    run.add_training(KEY, {"loss": 2.0, "grad_norm": None}).result()
    assert run.step(KEY).row.training == {"reward": 0.5, "loss": 2.0, "grad_norm": None}
    assert [row.training for row in (*run.steps("run", 0, after=7), *run.steps("run", 1))] == [{}, {}]
    for key in (KEY._replace(step=9), KEY._replace(run="none")):
        with pytest.raises(NotFoundError, match=f"{key} is not sealed"):
            run.add_training(key, {"loss": 1.0}).result()


def test_a_step_0_is_the_first_of_all(run: Ledger) -> None:
    for step in (0, 1, 2):
        sealed(run, StepKey("run", 0, step), records(rows=1))
    assert [row.key.step for row in run.steps("run", 0)] == [0, 1, 2]
    assert [row.key.step for row in run.steps_spread("run", 0)] == [0, 1, 2]
    assert [row.key.step for row in run.steps("run", 0, after=0, limit=1)] == [1]
    assert [row.key.step for row in run.steps_spread("run", 0, after=0, last=1)] == [1]


def test_steps_are_spread_once_where_none_are_for_a_while(run: Ledger) -> None:
    bring_in(run, "run", 0, np.array([0, 20, 21, 39]), {}).result()
    spread = {points: [row.key.step for row in run.steps_spread("run", 0, points=points)] for points in (40, 39, 4, 1)}
    assert spread == {40: [0, 20, 21, 39], 39: [0, 20, 39], 4: [0, 20, 39], 1: [0, 39]}


def test_steps_of_other_attempts_change_nothing_of_how_steps_are_spread(run: Ledger) -> None:
    others = np.array([0, *range(1000, 1010), 2099])
    bring_in(run, "run", 0, others, {})
    bring_in(run, "run", 1, np.array([1000, 1003, 1005, 1009]), {})
    bring_in(run, "run", 2, others, {}).result()
    assert [row.key.step for row in run.steps_spread("run", 1, points=5)] == [1000, 1003, 1005, 1009]
    assert [row.key.step for row in run.steps_spread("run", 1, points=2)] == [1000, 1005, 1009]


def test_ranks_may_come_in_any_order(run: Ledger) -> None:
    parts = {rank: records(rows=1, rank=rank) for rank in (2, 0, 1)}
    assert [run.put_part(KEY, rank, part).result() for rank, part in parts.items()] == ["new"] * 3
    assert [part.rank for part in run.parts(KEY)] == list(run.records(KEY)) == [0, 1, 2]
    ordered = [parts[rank] for rank in range(3)]
    step = judged(KEY, *ordered)
    assert run.seal(step).result() == "new"
    assert run.seal(replace(step, parts=dict(reversed(list(step.parts.items()))))).result() == "same"


@pytest.mark.parametrize("kept", [None, WorstSamples((), (), StepRecords.of([]))], ids=["not said", "none"])
def test_a_step_of_which_nothing_counts_is_sealed_without_samples(run: Ledger, kept: WorstSamples | None) -> None:
    part = StepRecords.of([{"sample": "a", "rollout_logprobs": [], "train_logprobs": []}])
    post(run, KEY, part)
    step = NewStep(KEY, {0: part.digest}, -1, compare_step(part.columns), samples=1, tokens=0, kept=kept)
    assert run.seal(step).result() == "new"
    found = run.step(KEY)
    assert (found.samples, found.by_position, found.verdict, found.flips) == ((), {}, {}, None)
    assert (found.row.severity, found.row.weight_version, found.row.training, found.row.figures.tokens) == (
        -1,
        "",
        {},
        0,
    )


def test_a_thousand_steps_are_read_where_no_other_number_is_asked_for(run: Ledger) -> None:
    bring_in(run, "run", 0, np.arange(1001), {}).result()
    assert [row.key.step for row in run.steps("run", 0)] == list(range(1000))
    assert [row.key.step for row in run.steps_spread("run", 0, last=999)] == list(range(1000))
    assert len(run.steps_spread("run", 0)) == 501, "every second one"
    assert len(run.timeline("run", 0, [], last=999).first) == 1000
    assert len(run.timeline("run", 0, []).first) == 501


def test_so_many_are_read_where_no_other_number_is_asked_for(run: Ledger) -> None:
    """The newest hundred of what is listed, and the next thousand of what is followed."""
    with run.database.write() as connection:
        events.add_events(connection, [NewEvent("tick", {}) for _ in range(1001)])
        one = {"kind": "engine", "headline": "", "why": "", "excess": 0.0, "evidence": {}, "actions": [], "notes": []}
        for number in range(101):
            row = one | {"subject": str(number), "opened": 0.0, "changed": 0.0, "severity": 1, "told": {}}
            connection.execute(sa.insert(incidents).values(row))
            connection.execute(sa.insert(checks).values(at=0.0, found={}))
            key = {"run": "run", "engine": "", "session": "", "number": number, "worker": 0}
            connection.execute(sa.insert(updates).values(**key, digest="", answer={}))
            sync = {
                "run": "run",
                "sync": str(number),
                "epoch": 1,
                "slab": "",
                "version": "",
                "mode": "",
                "started": 0.0,
            }
            connection.execute(sa.insert(syncs).values(sync))
    assert [len(found) for found in (run.incidents(), run.checks(), run.updates("run"), run.syncs())] == [100] * 4
    assert run.checks()[0].id == run.checks()[-1].id + 99
    assert len(run.events()) == 1000
    assert run.events()[0].id == 1


def test_what_is_asked_for_is_named(run: Ledger) -> None:
    sealed(run, KEY, records(rows=1))
    asked: Any = run
    found = [asked.steps(run="run", attempt=0), asked.steps_spread(run="run", attempt=0), asked.updates(run="run")]
    assert [len(one) for one in found] == [1, 1, 0]
    assert len(asked.timeline(run="run", attempt=0, names=["ess"]).first) == 1
    for name, plain in (
        ("steps", ("run", 0)),
        ("steps_spread", ("run", 0)),
        ("updates", ("run",)),
        ("timeline", ("run", 0, [])),
    ):
        with pytest.raises(TypeError):
            getattr(asked, name)(*plain, 5)
    for name in ("events", "checks", "syncs", "incidents"):
        with pytest.raises(TypeError):
            getattr(asked, name)(5)


def test_checks_are_found_by_every_part_of_their_step(run: Ledger) -> None:
    keys = [None, KEY, KEY._replace(step=0), KEY._replace(attempt=1), KEY._replace(run="other")]
    probe, seven, zero, again, other = (run.add_check({"severity": "ok"}, key).result() for key in keys)
    assert [check.key for check in run.checks()] == keys[::-1]
    assert run.checks(run="run") == [again, zero, seven]
    assert run.checks(run="run", attempt=0) == [zero, seven]
    assert run.checks(run="run", attempt=0, step=0) == [zero]
    assert run.checks(run="run", attempt=1) == [again]
    assert run.checks(run="run", attempt=0, step=7) == [seven]
    assert run.checks(run="other", limit=3) == [other]
    assert run.check(probe.id) == probe


def test_a_setting_that_an_older_version_did_not_know_is_no_change_while_it_is_empty(ledger: Ledger) -> None:
    ledger.put_run("run", {"model": "small", "limit": None}).result()
    later: dict[str, Any] = {"model": "small", "limit": None, "kinds": [], "labels": {}, "cause": None}
    assert ledger.put_run("run", later).result() == "same"
    for changed, said in (
        ({"model": "small", "limit": 0}, "limit"),
        ({"model": "small", "limit": None, "kinds": ["chart"]}, "kinds"),
        ({"model": "small", "limit": None, "ratio": 0.0}, "ratio"),
        ({"limit": None, "z": 1}, "model, z"),
        ({"model": "large", "limit": None}, "model"),
        ({"model": "tall", "limit": None}, "model"),
    ):
        with pytest.raises(ConflictError, match=f"registered with other values of {said};"):
            ledger.put_run("run", changed).result()
    assert ledger.put_run("run", {"model": "small"}).result() == "same"


def test_a_part_is_stored_if_it_fits_beside_those_of_the_other_ranks(run: Ledger) -> None:
    parts = [records(rows=rank + 1, rank=rank) for rank in range(3)]
    asked: list[tuple[int, int]] = []

    def fits(tokens: int, size: int) -> None:
        asked.append((tokens, size))
        if tokens > 60:
            raise ConflictError("too many tokens")

    for part, rank in ((parts[0], 0), (parts[1], 1), (parts[1], 1)):
        run.put_part(KEY, rank, part, fits).result()
    with pytest.raises(ConflictError, match="too many tokens"):
        run.put_part(KEY, 2, parts[2], fits).result()
    run.put_part(KEY._replace(step=8), 0, parts[0], fits).result()
    sizes = np.cumsum([len(part.payload) for part in parts]).tolist()
    assert asked == [(20, sizes[0]), (60, sizes[1]), (120, sizes[2]), (20, sizes[0])], "a part that is there fits"
    assert [part.rank for part in run.parts(KEY)] == [0, 1]


def test_an_attempt_that_was_refused_a_step_leaves_no_trace(run: Ledger) -> None:
    with pytest.raises(NotFoundError, match="has no parts"):
        run.seal(judged(KEY, records())).result()
    assert run.attempts("run") == []
    with run.database.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(attempts)).scalar() == 0
        assert connection.execute(sa.select(runs.c.run)).scalars().all() == ["run"]


def test_a_sample_of_a_name_is_the_one_that_is_furthest_apart(run: Ledger) -> None:
    near = {"sample": "a", "rollout_logprobs": [-1.0, -2.0], "train_logprobs": [-1.0, -2.25]}
    far = near | {"train_logprobs": [-1.0, -3.0]}
    other = near | {"sample": "b", "train_logprobs": [-1.0, -2.5]}
    parts = [StepRecords.of(rows) for rows in ([near], [other], [far])]
    sealed(run, KEY, *parts, worst=3)
    sealed(run, KEY._replace(step=8), parts[0], worst=1)
    found = run.sample(KEY, "a")
    assert (found.key, found.kept.rank, found.kept.place, found.kept.kind) == (KEY, 2, 0, "text")
    assert [run.sample(KEY, "a", rank).kept.place for rank in (2, 0)] == [0, 2]
    assert run.sample(KEY, "a", 0).record.to_json() == parts[0].to_json()
    assert run.sample(KEY, "b").record.to_json() == parts[1].to_json()
    assert run.sample(KEY, "a", 0).kept.figures == asdict(run.step(KEY._replace(step=8)).row.figures)
    with pytest.raises(NotFoundError, match="sample b of step 7 of run, attempt 0 is not kept"):
        run.sample(KEY, "b", 0)
