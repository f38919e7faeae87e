"""`omni-rl soak`: everything at once for a while, then what was lost, what grew and what became slow."""

import itertools
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omni_rl.bench.own_service import OwnService, Say, own_service
from omni_rl.bench.result import Goal, write_result
from omni_rl.bench.soak.kills import Killer
from omni_rl.bench.soak.load import PATIENT, Load
from omni_rl.bench.soak.measure import Calls, memory

POSTERS, READERS = 4, 2
MEMORY_SECONDS = 5.0
GROWTH = 1.10
SLOWER = 1.5
PAGE = 10_000


def soak(out: Path, minutes: float, seed: int, say: Say) -> Path:
    """Write `soak.json` to `out`."""
    with own_service(say, "--replicas", "2", "--world-size", "1") as service:
        load = Load(service, Calls(), threading.Event(), seed)
        killer = Killer(load, seed)
        sizes: list[tuple[float, dict[str, float]]] = []
        threads = _start(load, killer, sizes)
        _wait(load, killer, minutes, say)
        load.ended.set()
        for thread in threads:
            thread.join(PATIENT.longest * PATIENT.attempts)
        say("looking for what was acknowledged")
        results = {
            "minutes": minutes,
            "seed": seed,
            **_kept(service, load),
            **killer.figures(),
            "memory_mib": _memory(sizes, minutes * 60),
            "calls": load.calls.figures(minutes * 60 / 4),
            "failed": load.calls.failed[:20],
            "failed_while_something_was_dead": load.calls.failed_meanwhile,
        }
    return write_result(out / "soak.json", f"omni-rl soak --minutes {minutes:g}", _goals(results), results)


def _start(load: Load, killer: Killer, sizes: list[tuple[float, dict[str, float]]]) -> list[threading.Thread]:
    def sizes_now() -> None:
        began = time.monotonic()
        while not load.ended.wait(MEMORY_SECONDS):
            sizes.append((time.monotonic() - began, memory(load.service.run)))

    work: list[tuple[Callable[..., None], Sequence[Any]]] = [(load.post, (number,)) for number in range(POSTERS)]
    work += [(load.read, ())] * READERS
    work += [(each, ()) for each in (load.follow, load.sync, load.check, load.learn, killer.run, sizes_now)]
    for number in range(POSTERS):  # readers look at them from the start
        load.acknowledged[f"posted-{number}"] = {}
    threads = [threading.Thread(target=target, args=arguments, daemon=True) for target, arguments in work]
    for thread in threads:
        thread.start()
    return threads


def _wait(load: Load, killer: Killer, minutes: float, say: Say) -> None:
    for minute in range(1, int(minutes) + 1):
        time.sleep(60)
        steps = sum(len(kept) for kept in load.acknowledged.values())
        say(
            f"minute {minute} of {minutes:g}: {steps} steps posted, {len(load.jobs)} jobs, "
            f"{len(killer.deaths)} deaths, {len(load.calls.failed)} calls failed"
        )
    time.sleep(60 * (minutes - int(minutes)))


def _kept(service: OwnService, load: Load) -> dict[str, Any]:
    """Whether the ledger has what was acknowledged; how events and jobs went."""
    lost = 0
    with service.client(PATIENT) as client:
        for run, kept in load.acknowledged.items():
            there = {line.step: line.tokens for line in client.steps(run, limit=PAGE)}
            lost += sum(there.get(step) != tokens for step, tokens in kept.items())
        jobs = {job: client.job(job) for job in load.jobs}
        ends = Counter(answer.status for job, answer in jobs.items() if job not in load.stopped)
        gate = client.state().gate.gate
    events = load.events
    return {
        "steps_acknowledged": sum(len(kept) for kept in load.acknowledged.values()),
        "steps_lost": lost,
        "events": len(events),
        "events_missed": sum(later - earlier - 1 for earlier, later in itertools.pairwise(events)),
        "jobs": dict(ends),
        "jobs_stopped_on_purpose": len(load.stopped),
        "job_failures": [answer.message for answer in jobs.values() if answer.status == "failed"][:10],
        "gate": gate,
    }


def _memory(sizes: Sequence[tuple[float, dict[str, float]]], seconds: float) -> dict[str, dict[str, float]]:
    """Median of the second and of the last quarter, by role."""
    found = {}
    for role in sorted({role for _, each in sizes for role in each}):
        second, last = (
            [each[role] for at, each in sizes if first * seconds <= at < (first + 0.25) * seconds and role in each]
            for first in (0.25, 0.75)
        )
        if second and last:
            found[role] = {"second": round(statistics.median(second), 1), "last": round(statistics.median(last), 1)}
    return found


def _goals(results: dict[str, Any]) -> list[Goal]:
    compared = [call for call in results["calls"].values() if "second" in call and "last" in call]
    slower = max((call["last"]["p50"] / call["second"]["p50"] for call in compared), default=float("nan"))
    grown = max((size["last"] / size["second"] for size in results["memory_mib"].values()), default=float("nan"))
    never = sum(death["whole_after"] is None for death in results["deaths"])
    return [
        Goal("acknowledged steps lost", results["steps_lost"], 0, "lower"),
        Goal("events missed", results["events_missed"], 0, "lower"),
        Goal("calls failed while nothing was dead", len(results["failed"]), 0, "lower"),
        Goal("deaths that the service did not get over", never, 0, "lower"),
        Goal("jobs failed", results["jobs"].get("failed", 0), 0, "lower"),
        Goal("memory, last quarter over second, worst kind of process", grown, GROWTH, "lower"),
        Goal("median latency, last quarter over second, worst call", slower, SLOWER, "lower"),
    ]
