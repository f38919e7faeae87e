"""What is written of one run, attempt and step is in no other, whichever was there before; on both databases."""

from dataclasses import replace
from typing import Any

import pytest

from omni_rl.errors import ConflictError
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.types import Step, StepKey

from .steps import CONFIG, attempt_numbers, judged, line, post, records, sealed

MIDDLE = StepKey("m", 1, 5)
BESIDE = [
    StepKey("a", 1, 5),
    *(StepKey("m", attempt, step) for attempt, steps in enumerate([(5, 6), (4, 6), (5, 6)]) for step in steps),
    StepKey("z", 1, 5),
]


@pytest.fixture
def beside(ledger: Ledger) -> Ledger:
    """A ledger with every step around one that is not there yet."""
    for run in "amz":
        ledger.put_run(run, CONFIG)
    for number, key in enumerate(BESIDE):
        part = records(seed=number, rows=1, tokens=5 + number)
        ledger.put_part(key, 0, part)
        written = ledger.seal(judged(key, part, worst=1, training={"n": number}))
    written.result()
    return ledger


def seen(ledger: Ledger, keys: list[StepKey]) -> list[Any]:
    return [(ledger.step(key), [part.size > 0 for part in ledger.parts(key)]) for key in keys]


def test_a_step_between_others_is_as_it_would_be_alone(beside: Ledger) -> None:
    before = seen(beside, BESIDE)
    sizes: list[tuple[int, int]] = []
    parts = [records(seed=99, rows=1, rank=rank) for rank in (0, 1)]
    for rank, part in enumerate(parts):
        assert beside.parts(MIDDLE) == [] if rank == 0 else len(beside.parts(MIDDLE)) == 1
        assert beside.put_part(MIDDLE, rank, part, lambda *fits: sizes.append(fits)).result() == "new"
    assert sizes == [(20, len(parts[0].payload)), (40, len(parts[0].payload) + len(parts[1].payload))]
    assert [records.digest for records in beside.records(MIDDLE).values()] == [part.digest for part in parts]
    step = judged(MIDDLE, *parts, training={"n": -1})
    assert beside.seal(step).result() == "new"
    assert beside.seal(step).result() == "same"
    found: Step = beside.step(MIDDLE)
    assert found.row.figures == step.comparison.overall.metrics
    assert ([part.rank for part in found.parts], len(found.samples)) == ([0, 1], 2)
    assert list(found.by_kind) == ["overall", "text"]
    assert {kind: [(one.first, one.last) for one in bins] for kind, bins in found.by_position.items()} == {
        kind: list(bins) for kind, bins in step.comparison.by_position.items()
    }
    assert [row.key.step for row in beside.steps("m", 1)] == [4, 5, 6]
    assert [row.training["n"] for row in beside.steps("m", 1, after=4, limit=1)] == [-1]
    assert line(beside.timeline("m", 1, ["tokens"]), "tokens")[1] == 40
    for one in found.samples:
        assert beside.sample(MIDDLE, one.sample, one.rank).record.to_json() == parts[one.rank].to_json()
    latest = [StepKey("a", 1, 5), StepKey("m", 2, 6), StepKey("z", 1, 5)]
    assert [run.latest for run in beside.to_remember(100)] == [beside.run(key.run).latest for key in latest] == latest
    assert [(one.attempt, one.first, one.last) for one in beside.attempts("m")] == [(0, 5, 6), (1, 4, 6), (2, 5, 6)]
    beside.add_training(MIDDLE, {"n": -2}).result()
    assert beside.step(MIDDLE).row.training == {"n": -2}
    after = seen(beside, BESIDE)
    dropped = StepKey("m", 1, 4)  # two newer steps of its attempt are sealed now
    assert [one for one, key in zip(after, BESIDE, strict=True) if key != dropped] == [
        one for one, key in zip(before, BESIDE, strict=True) if key != dropped
    ]
    assert replace(beside.step(dropped), parts=()) == replace(before[BESIDE.index(dropped)][0], parts=())


def test_what_was_posted_of_a_step_is_asked_of_this_step_alone(beside: Ledger) -> None:
    post(beside, MIDDLE, records(seed=99))
    for seed in range(6):
        with pytest.raises(ConflictError, match="rank 0 has posted other records for step 5 of m, attempt 1"):
            beside.put_part(MIDDLE, 0, records(seed=seed)).result()
    with pytest.raises(ConflictError, match=r"other parts than those that were judged: ranks 0, 1, 10;"):
        beside.seal(replace(judged(MIDDLE, records(seed=98)), parts={0: "?", 1: "?", 10: "?"})).result()
    sealed(beside, MIDDLE, records(seed=99))
    for key in (MIDDLE, *BESIDE):
        with pytest.raises(ConflictError, match=f"{key} is sealed; rank 7 came too late"):
            beside.put_part(key, 7, records()).result()
        for digest in ("0", "1", "2", "3"):
            with pytest.raises(ConflictError, match=f"{key} was sealed with other parts"):
                beside.seal(replace(judged(key, records(seed=98)), parts={0: digest})).result()


def test_a_new_attempt_between_others_begins_with_nothing(ledger: Ledger) -> None:
    for run in "amz":
        ledger.put_run(run, CONFIG).result()
    for key in (StepKey("z", 1, 5), StepKey("m", 2, 5), StepKey("m", 0, 5), StepKey("a", 1, 5)):
        sealed(ledger, key, records(rows=1))
    assert attempt_numbers(ledger, "m") == (0, 2)
    sealed(ledger, MIDDLE, records(seed=3))
    assert attempt_numbers(ledger, "m") == (0, 1, 2)
    assert ledger.step(MIDDLE).row.tokens == 60
    assert [attempt_numbers(ledger, run) for run in "az"] == [(1,), (1,)]
