"""What is in memory of runs' updates: how much, what makes room, and the sentences about faults in several engines."""

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
from omni_rl_services.coordinator import live_updates
from omni_rl_services.coordinator.live_updates import (
    LiveRuns,
    LiveUpdates,
    OpenFault,
    incident_of,
    left,
    sentence_of,
    with_engine,
)
from omni_rl_services.coordinator.settings import MIB

from omni_rl.agent.faults import UpdateFault
from omni_rl.agent.judging import RunUpdates
from omni_rl.consistency.actions import Cause
from omni_rl.errors import TooLargeError, TooManyError

STALE = UpdateFault(Cause.STALE_WEIGHTS, "update 2 changed nothing", ("a", "b"), "stale 1")


@dataclass
class Sized(RunUpdates):
    """Updates that take as many bytes as they are told to, and of which some are of engines that are gone."""

    takes: int = 0
    gone: int = 0

    def nbytes(self, more: Any = None) -> int:
        return self.takes + self.gone + (more or 0)

    def forget_gone(self) -> None:
        self.gone = 0


def live(takes: int, gone: int = 0) -> LiveUpdates:
    return LiveUpdates(Sized(takes=takes, gone=gone))


def filled(limit: int, *sizes: int) -> tuple[LiveRuns, list[LiveUpdates]]:
    runs, those = LiveRuns(limit), [live(size) for size in sizes]
    for number, one in enumerate(those):
        assert runs.add(f"r{number}", one) is one
    return runs, those


def names(runs: LiveRuns) -> set[str]:
    return {f"r{number}" for number in range(100) if runs.get(f"r{number}") is not None}


def test_a_run_that_is_there_stays_and_counts_as_the_one_used_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_updates, "RUNS", 2)
    runs, (first, second) = filled(100, 1, 2)
    assert runs.nbytes == 3
    assert runs.add("r0", live(9)) is first
    runs.add("r2", live(4))
    assert names(runs) == {"r0", "r2"}
    assert runs.get("r1") is not second
    assert runs.nbytes == 5


def test_the_newest_updates_of_64_runs_are_in_memory() -> None:
    runs, _ = filled(10_000, *[1] * 64)
    assert len(names(runs)) == 64
    runs.add("r64", live(1))
    assert names(runs) == {f"r{number}" for number in range(1, 65)}


@pytest.mark.parametrize(
    ("more", "stay"),
    [
        (40, {"r0", "r1", "r2"}),
        (41, {"r1", "r2"}),
        (60, {"r1", "r2"}),
        (61, {"r2"}),
        (90, {"r2"}),
    ],
)
def test_the_runs_used_longest_ago_make_room_and_no_more_of_them_than_it_takes(more: int, stay: set[str]) -> None:
    runs, (_, _, last) = filled(100, 20, 30, 10)
    runs.make_room("r2", last, more)  # type: ignore[arg-type]
    assert names(runs) == stay


@pytest.mark.parametrize("more", [50, 51, 80])
def test_a_run_that_was_used_longest_ago_itself_gets_the_room_of_the_others(more: int) -> None:
    runs, (first, _) = filled(100, 20, 30)
    runs.make_room("r0", first, more)  # type: ignore[arg-type]
    assert names(runs) == ({"r0", "r1"} if more == 50 else {"r0"})


def test_a_run_whose_weights_are_compared_makes_no_room() -> None:
    async def look() -> None:
        runs, (first, _, last) = filled(100, 20, 30, 10)
        async with first.turn:
            runs.make_room("r2", last, 70)  # type: ignore[arg-type]
            assert names(runs) == {"r0", "r2"}
            with pytest.raises(TooManyError, match="send this again"):
                runs.make_room("r2", last, 71)  # type: ignore[arg-type]
        runs.make_room("r2", last, 71)  # type: ignore[arg-type]
        assert names(runs) == {"r2"}

    asyncio.run(look())


def test_a_run_that_alone_takes_more_than_there_is_is_told_how_much_would_do() -> None:
    runs, (one,) = filled(4 * MIB, MIB)
    runs.make_room("r0", one, 3 * MIB)  # type: ignore[arg-type]
    with pytest.raises(TooLargeError) as refused:
        runs.make_room("r0", one, 3 * MIB + 1)  # type: ignore[arg-type]
    assert str(refused.value) == (
        "the fingerprints of run r0 would take 5 MiB, and there is memory for 4: give the coordinator more "
        "(bounds.memory = 65 MiB)"
    )
    with pytest.raises(TooLargeError, match=r"would take 5 MiB.*bounds\.memory = 80 MiB"):
        runs.make_room("r0", one, 4 * MIB)  # type: ignore[arg-type]


@pytest.mark.parametrize(("more", "gone"), [(80, 10), (81, 0)])
def test_engines_that_are_gone_make_room_where_it_is_needed(more: int, gone: int) -> None:
    runs, one = LiveRuns(100), live(10, gone=10)
    runs.add("r0", one)
    runs.make_room("r0", one, more)  # type: ignore[arg-type]
    assert isinstance(one.of, Sized)
    assert one.of.gone == gone


def test_faults_end_with_the_last_engine_that_has_them() -> None:
    one = live(1)
    for key, engines in (("a", {"e0"}), ("b", {"e0", "e1"}), ("c", {"e2", "e3"})):
        one.open[key] = OpenFault(STALE, 1, engines)
    gone = left(one, {"e1", "e4"})
    assert len(gone) == 2
    assert {key: open_.engines for key, open_ in one.open.items()} == {"b": {"e1"}}
    assert left(one, {"e1"}) == []


def test_a_fault_in_one_more_engine_is_the_same_incident() -> None:
    one = live(1)
    first = with_engine(one, STALE, "e0")
    assert (first.fault, first.incident, first.engines) == (STALE, 0, {"e0"})
    one.open[STALE.key] = OpenFault(STALE, 7, {"e0"})
    second = with_engine(one, STALE, "e1")
    assert (second.incident, second.engines) == (7, {"e0", "e1"})
    assert one.open[STALE.key].engines == {"e0"}, "until the ledger has it"
    many = UpdateFault(Cause.STALE_WEIGHTS, "many", tuple(map(str, range(17))), "many")
    assert with_engine(one, many, "e0").fault.parts == tuple(map(str, range(16)))


@pytest.mark.parametrize(
    ("engines", "of", "told"),
    [
        ({"e0"}, 1, "update 2 changed nothing"),
        ({"e0"}, 2, "update 2 changed nothing (engine e0, 1 of 2)"),
        ({"e0", "e1"}, 2, "update 2 changed nothing, in 2 of 2 engines"),
        ({"e0", "e1"}, 5, "update 2 changed nothing, in 2 of 5 engines"),
    ],
)
def test_a_fault_says_in_how_many_engines_it_is(engines: set[str], of: int, told: str) -> None:
    assert sentence_of(OpenFault(STALE, 1, engines), of) == told


@pytest.mark.parametrize(
    ("cause", "severity"), [(Cause.STALE_CACHE, 2), (Cause.STALE_WEIGHTS, 3), (Cause.CORRUPT_WEIGHTS, 3)]
)
def test_a_cache_asks_for_a_mask_and_weights_for_a_pause(cause: Cause, severity: int) -> None:
    fault = OpenFault(UpdateFault(cause, "so", ("a", "b"), "key"), 1, {"e1", "e0"})
    found = incident_of(fault, 3, 9)
    assert (found.severity, found.cause, found.kind, found.subject) == (severity, str(cause), "update", "key")
    assert found.headline == "so, in 2 of 3 engines"
    assert found.evidence == {
        "weights": {"result": "explains", "sentence": "so", "update": 9, "engines": ["e0", "e1"], "tensors": ["a", "b"]}
    }
