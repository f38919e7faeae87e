"""What is put into a ledger is in it, once, and comes out as it was; on SQLite and on PostgreSQL."""

import contextlib
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from numpy.testing import assert_array_equal

from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.comparison import compare_step
from omni_rl.errors import ConfigError, ConflictError, LedgerError, NotFoundError
from omni_rl.kinds import OVERALL
from omni_rl.ledger import changes
from omni_rl.ledger.database import SILENT_SECONDS
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.tables import BIN_FIGURES
from omni_rl.ledger.types import NewEvent, NewState, SortKeys, StepKey
from tests.ledgers import new_ledger, open_ledger
from tests.postgres import Postgres

from .steps import CONFIG, attempt_numbers, judged, post, records, sealed

KEY = StepKey("run", 0, 7)


@pytest.fixture
def run(ledger: Ledger) -> Ledger:
    assert ledger.put_run("run", CONFIG).result() == "new"
    return ledger


def test_a_run_is_registered_once(run: Ledger) -> None:
    assert run.put_run("run", CONFIG).result() == "same"
    with pytest.raises(ConflictError, match=r"run run is registered with other values of dtype, extra"):
        run.put_run("run", CONFIG | {"dtype": "bfloat16", "extra": 1}).result()
    assert run.run("run").config == CONFIG
    with pytest.raises(NotFoundError, match="no run other"):
        run.run("other")


def test_the_same_part_again_is_fine_and_another_is_not(run: Ledger) -> None:
    part = records()
    assert run.put_part(KEY, 0, part).result() == "new"
    assert run.put_part(KEY, 0, StepRecords.from_arrow(part.to_arrow())).result() == "same"
    with pytest.raises(ConflictError, match="rank 0 has posted other records for step 7 of run, attempt 0") as refused:
        run.put_part(KEY, 0, records(seed=1)).result()
    assert f": {part.digest[:12]} is there, this is {records(seed=1).digest[:12]}" in str(refused.value)
    assert run.put_part(KEY, 1, records(seed=1)).result() == "new"
    assert [(p.rank, p.digest, p.samples, p.tokens) for p in run.parts(KEY)] == [
        (0, part.digest, 3, 60),
        (1, records(seed=1).digest, 3, 60),
    ]


def test_a_part_needs_its_run(ledger: Ledger) -> None:
    with pytest.raises(NotFoundError, match="no run run; register it first"):
        ledger.put_part(KEY, 0, records()).result()


def test_records_come_back_as_they_were_posted(run: Ledger) -> None:
    parts = records(), records(rank=1)
    post(run, KEY, *parts)
    found = run.records(KEY)
    assert {rank: part.digest for rank, part in found.items()} == {0: parts[0].digest, 1: parts[1].digest}
    assert_array_equal(found[1].columns.train_logprobs, parts[1].columns.train_logprobs)
    with pytest.raises(NotFoundError, match="step 8 of run, attempt 0 has no parts"):
        run.records(KEY._replace(step=8))


def test_a_sealed_step_has_all_its_figures(run: Ledger) -> None:
    parts = records(tokens=30), records(rank=1)
    step = sealed(
        run,
        KEY,
        *parts,
        severity=2,
        verdict={"reason": "because"},
        training={"reward": 0.5},
        weight_version="run/0/3/abcd",
        flips=(0, 4),
    )
    found = run.step(KEY)
    comparison = compare_step(StepColumns.joined([part.columns for part in parts]))
    assert found.row.key == KEY
    assert found.row.figures == comparison.overall.metrics
    assert found.by_kind == {
        OVERALL: comparison.overall.metrics,
        **{kind: kept.metrics for kind, kept in comparison.by_kind.items()},
    }
    assert {kind: [(b.first, b.last, b.figures) for b in bins] for kind, bins in found.by_position.items()} == {
        kind: [(*edges, {name: getattr(metrics, name) for name in BIN_FIGURES}) for edges, metrics in bins.items()]
        for kind, bins in comparison.by_position.items()
    }
    assert (found.row.severity, found.verdict, found.row.training) == (2, {"reason": "because"}, {"reward": 0.5})
    assert (found.row.samples, found.row.tokens, found.row.weight_version) == (6, 150, "run/0/3/abcd")
    assert found.flips == (0, 4)
    kept = step.kept
    assert kept is not None
    assert [(one.place, one.rank, one.sample, one.figures) for one in found.samples] == [
        (place, rank, sample, asdict(metrics))
        for place, (rank, sample, metrics) in enumerate(
            zip(kept.ranks, kept.records.samples, kept.figures, strict=True)
        )
    ]
    assert run.steps("run", 0) == [found.row]
    assert run.run("run").latest == KEY


def test_two_ranks_may_name_their_samples_alike(run: Ledger) -> None:
    step = sealed(run, KEY, records(), records(), worst=4)
    found = run.step(KEY)
    assert step.kept is not None
    assert [(kept.rank, kept.sample) for kept in found.samples] == list(
        zip(step.kept.ranks, step.kept.records.samples, strict=True)
    )
    assert len({kept.sample for kept in found.samples}) < len(found.samples)
    worst = found.samples[0]
    assert run.sample(KEY, worst.sample).kept == worst
    assert [run.sample(KEY, worst.sample, rank).kept.rank for rank in (0, 1)] == [0, 1]


def test_a_kept_sample_has_its_tokens(run: Ledger) -> None:
    step = sealed(run, KEY, records())
    assert step.kept is not None
    for place, name in enumerate(step.kept.records.samples):
        found = run.sample(KEY, name)
        assert found.record.to_json() == step.kept.records.row(place).to_json()
        assert found.kept.place == place
    with pytest.raises(NotFoundError, match="sample r0s0 of step 7 of run, attempt 0 is not kept"):
        run.sample(KEY, "r0s0")


def test_figures_that_are_no_numbers_come_back_so(run: Ledger) -> None:
    broken = records().to_json()["records"]
    broken[0]["train_logprobs"][0] = math.nan
    broken[1]["train_logprobs"][0] = -math.inf
    step = sealed(run, KEY, StepRecords.of(broken))
    found = run.step(KEY)
    assert_array_equal(list(asdict(found.row.figures).values()), list(asdict(step.comparison.overall.metrics).values()))
    assert math.isnan(found.row.figures.gen_kl_error)
    assert found.by_kind["image"].logprob_abs_diff_max == math.inf
    assert math.isnan(run.sample(KEY, "r0s0").record.columns.train_logprobs[0])


def test_sealing_is_once(run: Ledger) -> None:
    step = sealed(run, KEY, records(), after=NewState({}, SortKeys(1), (NewEvent("verdict", {"n": 1}, "run"),)))
    assert run.seal(step).result() == "same"
    assert len(run.events()) == 1
    with pytest.raises(ConflictError, match="sealed with other parts"):
        run.seal(replace(step, parts={0: "other"})).result()
    assert run.put_part(KEY, 0, records()).result() == "same"
    with pytest.raises(ConflictError, match="is sealed; rank 1 came too late"):
        run.put_part(KEY, 1, records(rank=1)).result()


def test_a_step_is_sealed_with_what_was_judged_or_not_at_all(run: Ledger) -> None:
    """A part that came between judgement and seal must not be in a step that was judged without it."""
    post(run, KEY, records(), records(rank=1))
    step = judged(KEY, records(), after=NewState({"calm": 1}, SortKeys(1), (NewEvent("verdict", {}, "run"),)))
    with pytest.raises(ConflictError, match="other parts than those that were judged: ranks 1"):
        run.seal(step).result()
    assert run.steps("run", 0) == []
    assert run.events() == []
    assert run.run("run").state is None
    with pytest.raises(NotFoundError, match="step 9 of run, attempt 0 has no parts"):
        run.seal(judged(KEY._replace(step=9), records())).result()


def test_attempts_are_told_apart(run: Ledger) -> None:
    again = StepKey("run", 1, 7)
    sealed(run, KEY, records())
    sealed(run, again, records(seed=5))
    assert attempt_numbers(run, "run") == (0, 1)
    assert run.run("run").latest == again
    assert run.step(KEY).row.figures != run.step(again).row.figures
    with pytest.raises(NotFoundError, match="run run has no attempt 2"):
        run.steps("run", 2)


def test_steps_are_paged_in_order(run: Ledger) -> None:
    for number in (3, 1, 2):
        sealed(run, StepKey("run", 0, number), records(seed=number))
    assert [row.key.step for row in run.steps("run", 0, limit=2)] == [1, 2]
    assert [row.key.step for row in run.steps("run", 0, after=2)] == [3]


def test_the_policy_and_its_events_go_together(run: Ledger) -> None:
    run.put_state(
        "run", NewState({"severity": 2}, SortKeys(5), (NewEvent("severity", {"after": "mask"}, "run"),))
    ).result()
    after = NewState({"severity": 3}, SortKeys(8), (NewEvent("severity", {"after": "pause"}, "run"),))
    sealed(run, KEY, records(), after=after)
    assert run.run("run").state == {"severity": 3}
    assert [(event.kind, event.data["after"]) for event in run.events()] == [
        ("severity", "mask"),
        ("severity", "pause"),
    ]
    with pytest.raises(NotFoundError):
        run.put_state("other", NewState({}, SortKeys(1), (NewEvent("severity", {}, None),))).result()
    assert len(run.events()) == 2


def test_events_can_be_followed(run: Ledger) -> None:
    assert run.last_event() == 0
    numbers = [run.add_event("tick", {"n": n}, "run" if n % 2 else None).result() for n in range(6)]
    assert numbers == sorted(set(numbers))
    assert [event.data["n"] for event in run.events(after=numbers[1], limit=3)] == [2, 3, 4]
    assert [event.data["n"] for event in run.events(run="run")] == [1, 3, 5]
    assert run.last_event() == numbers[-1]


def test_old_payloads_go_and_figures_stay(run: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "SAMPLE_STEPS", 3)
    post(run, StepKey("run", 0, 0), records())  # never sealed: kept
    for number in range(1, 7):
        sealed(run, StepKey("run", 0, number), records(), severity=1 if number == 2 else 0)
    kept = {number: len(run.step(StepKey("run", 0, number)).samples) for number in range(1, 7)}
    assert kept == {1: 0, 2: 2, 3: 0, 4: 2, 5: 2, 6: 2}
    assert run.records(StepKey("run", 0, 0))
    assert run.records(StepKey("run", 0, 5))
    with pytest.raises(NotFoundError, match="sealed long ago"):
        run.records(StepKey("run", 0, 4))
    assert run.put_part(StepKey("run", 0, 1), 0, records()).result() == "same"


def test_all_is_there_after_reopening(url: str) -> None:
    with Ledger.open(url) as ledger:
        ledger.put_run("run", CONFIG).result()
        sealed(ledger, KEY, records(), after=NewState({"calm": 2}, SortKeys(1)))
        before = ledger.step(KEY)
    with Ledger.open(url) as ledger:
        assert ledger.step(KEY) == before
        assert ledger.run("run").state == {"calm": 2}


def test_what_waits_at_the_end_is_written(url: str) -> None:
    with Ledger.open(url) as ledger:
        waiting = [ledger.add_event("tick", {"n": n}) for n in range(300)]
    assert all(future.done() for future in waiting)
    with pytest.raises(LedgerError, match="closed"):
        ledger.add_event("late", {})
    with Ledger.open(url) as ledger:
        assert [event.data["n"] for event in ledger.events()] == list(range(300))


def test_a_refused_write_does_not_take_its_neighbours_along(run: Ledger) -> None:
    """They share a transaction: one that fails is undone alone."""
    post(run, KEY, records())
    writes = [run.put_part(KEY, rank, records(seed=1, rank=rank)) for rank in (1, 0, 2, 0, 3)]
    outcomes = [type(error).__name__ if (error := write.exception()) else write.result() for write in writes]
    assert outcomes == ["new", "ConflictError", "new", "ConflictError", "new"]
    assert [part.rank for part in run.parts(KEY)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "url", ["mysql://host/db", "sqlite://", "sqlite:///:memory:", "nonsense", "postgresql+asyncpg://host/db"]
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="ledger"):
        Ledger.open(url)


def test_an_unreachable_database_is_said_without_its_password() -> None:
    with pytest.raises(LedgerError, match=r"postgresql\+psycopg://me:\*\*\*@127.0.0.1:1/db") as error:
        Ledger.open("postgresql://me:secret@127.0.0.1:1/db")
    assert "secret" not in str(error.value)


def test_a_database_that_is_cut_off_is_noticed_by_what_it_does_not_acknowledge(postgres: Postgres) -> None:
    with open_ledger(new_ledger(postgres)) as ledger, ledger.database.read() as connection:
        made = connection.connection.driver_connection
        assert made is not None
        assert made.info.get_parameters()["tcp_user_timeout"] == str(1000 * SILENT_SECONDS)


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    file.write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(LedgerError, match="cannot be opened: file is not a database"):
        Ledger.open(f"sqlite:///{file}")


def test_old_checks_that_found_nothing_go(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "NEWER_CHECKS", 2)
    severities = ("ok", "pause", "ok", "ok", "ok", "ok", "ok")
    made = [ledger.add_check({"severity": severity, "cause": None}).result() for severity in severities]
    made.append(ledger.add_check({"severity": "ok", "cause": "kernel"}).result())
    made += [ledger.add_check({"severity": "ok", "cause": None}).result() for _ in range(3)]
    assert ledger.checks() == [made[10], made[9], made[7], made[1]]
    with pytest.raises(NotFoundError, match="there is no check 1: those that found nothing wrong"):
        ledger.check(1)


def test_checks_are_numbered_and_found_by_their_step(ledger: Ledger) -> None:
    probe = ledger.add_check({"severity": "ok"}).result()
    step = ledger.add_check({"severity": "pause", "far": math.inf}, KEY).result()
    later = ledger.add_check({"severity": "ok"}, KEY._replace(step=8)).result()
    assert ledger.check(step.id) == step
    assert ledger.checks() == [later, step, probe]
    assert ledger.checks(limit=1) == [later]
    assert ledger.checks(run="run", attempt=0, step=7) == [step]
    assert ledger.checks(run="run") == [later, step]
    with pytest.raises(NotFoundError, match="there is no check 77"):
        ledger.check(77)


def test_a_new_ledgers_files_are_their_owners_alone(tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    with contextlib.closing(Ledger.open(f"sqlite:///{file}")):
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes["ledger.db"] == modes["ledger.db-wal"] == 0o600
    assert set(modes.values()) == {0o600}
