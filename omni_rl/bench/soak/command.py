"""`omni-rl soak`: everything at once for a while, then what was lost, what grew and what became slow."""

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omni_rl.bench.own_service import OwnService, Say, own_service
from omni_rl.bench.result import Goal, write_result
from omni_rl.bench.soak import memory
from omni_rl.bench.soak.kills import Killer
from omni_rl.bench.soak.load import PATIENT, Load
from omni_rl.bench.soak.looks import read
from omni_rl.bench.soak.measure import rises

POSTERS, READERS = 4, 2
GROWTH = 1.10
SLOWER = 1.5
END_SECONDS = 300.0
"""For all callers to end after they were told: the last job, a death that is being got over."""
LOG_LINES = 5
"""Of a job that failed, in the results."""


def soak(out: Path, minutes: float, seed: int, say: Say) -> Path:
    """Write `soak.json` to `out`. Interrupted, it writes nothing and leaves nothing running."""
    with own_service(say, "--replicas", "2", "--world-size", "1") as service:
        load = Load(service, seed)
        killer = Killer(load, seed, minutes)
        sizes: list[memory.Look] = []
        try:
            _start(load, killer, sizes)
            say(f"load for {minutes:g} minutes")
            _wait(load, killer, minutes, say)
        finally:
            load.callers.ended.set()
            killer.rest()  # what it starts would outlive the service
        load.last_event()
        load.callers.join(END_SECONDS)
        say("looking for what was acknowledged")
        results = {"minutes": minutes, "seed": seed, **_kept(service, load), **_measured(load, killer, sizes, minutes)}
    return write_result(out / "soak.json", f"omni-rl soak --minutes {minutes:g}", goals(results), results)


def _start(load: Load, killer: Killer, sizes: list[memory.Look]) -> None:
    runs = [f"posted-{number}" for number in range(POSTERS)]
    load.acknowledged.steps.update({run: {} for run in runs})  # readers look at them from the start
    for run in runs:
        load.callers.start(load.post, run)
    for _ in range(READERS):
        load.callers.start(read, load)
    for call in (load.keep, load.follow, load.sync, load.check, load.pause, load.learn, killer.run):
        load.callers.start(call)
    load.callers.start(memory.look, load.service.run, load.callers.ended, sizes)


def _wait(load: Load, killer: Killer, minutes: float, say: Say) -> None:
    for minute in range(1, int(minutes) + 1):
        time.sleep(60)
        say(
            f"minute {minute} of {minutes:g}: {load.acknowledged.counts()['steps']} steps posted, "
            f"{len(load.jobs)} jobs, {len(killer.deaths)} deaths, {len(load.calls.failed)} calls failed"
        )
    time.sleep(60 * (minutes - int(minutes)))


def _kept(service: OwnService, load: Load) -> dict[str, Any]:
    """Whether the ledger has what was acknowledged; how events and jobs went."""
    with service.client(PATIENT) as client:
        lost = load.acknowledged.lost(client)
        load.past(client)
        jobs = {job: client.job(job) for job in load.jobs if job not in load.stopped}
        logs = {job: client.logs(job).splitlines()[-LOG_LINES:] for job, it in jobs.items() if it.status == "failed"}
        gate = client.state().gate.gate
    seen = set(load.events)
    return {
        "acknowledged": load.acknowledged.counts(),
        "lost": lost,
        "events": len(load.events),
        "events_missed": max(seen, default=0) - len(seen),
        "events_twice": len(load.events) - len(seen),
        "jobs": dict(Counter(answer.status for answer in jobs.values())),
        "jobs_stopped_on_purpose": len(load.stopped),
        "job_failures": {job: [jobs[job].message, *lines] for job, lines in logs.items()},
        "engines_replaced": [{"at": round(at - load.began, 1), "why": why} for at, why in load.replaced.values()],
        "gate": gate,
    }


def _measured(load: Load, killer: Killer, sizes: Sequence[memory.Look], minutes: float) -> dict[str, Any]:
    seconds = minutes * 60
    grown = memory.growth(sizes, seconds / 2, seconds)
    return {
        **killer.figures(),
        "callers_broken": load.callers.broken,
        "memory_mib": {kind: {**asdict(its), "ratio": its.ratio} for kind, its in grown.items()},
        "calls": load.calls.figures(seconds),
        "failed": load.calls.failed,
        "failed_while_something_was_dead": dict(load.calls.failed_meanwhile),
    }


def _most(ratios: Sequence[float]) -> float:
    return max(ratios, default=float("nan"))


def goals(results: dict[str, Any]) -> list[Goal]:
    """Bars for what `soak` found."""
    jobs, sizes, deaths = results["jobs"], results["memory_mib"], results["deaths"]
    unfinished = sum(count for status, count in jobs.items() if status != "succeeded")
    ours = [size["ratio"] for kind, size in sizes.items() if kind not in memory.RAYS]
    rays = [size["ratio"] for kind, size in sizes.items() if kind in memory.RAYS]
    never = sum(death["whole_after"] is None for death in deaths)
    # A third has some hundred calls of a kind: the p99 of one is noise, that of most is not.
    medians, tails = rises(results["calls"], "p50"), rises(results["calls"], "p99")
    slowest = max(medians, default=float("nan"))
    tail = statistics.median(tails) if tails else float("nan")
    return [
        Goal("acknowledged steps, syncs, checks and media lost", len(results["lost"]), 0, "lower"),
        Goal("events missed or told twice", results["events_missed"] + results["events_twice"], 0, "lower"),
        Goal("calls failed while nothing was dead", len(results["failed"]), 0, "lower"),
        Goal("callers that broke", len(results["callers_broken"]), 0, "lower"),
        Goal("deaths", len(deaths), results["minutes"] // 3, "higher"),
        Goal("deaths that the service did not get over", never, 0, "lower"),
        Goal("jobs succeeded", jobs.get("succeeded", 0), 1, "higher"),
        Goal("jobs failed or unfinished", unfinished, 0, "lower"),
        Goal("kinds of process followed over the last half", len(sizes), len(set(memory.KINDS.values())), "higher"),
        Goal("memory, the process of ours that grew most over the last half", _most(ours), GROWTH, "lower"),
        Goal("memory, the process of Ray's that grew most over the last half", _most(rays), GROWTH, "lower"),
        Goal("p50 latency, last third over first, the call that slowed most", slowest, SLOWER, "lower"),
        Goal("p99 latency, last third over first, median over the calls", tail, SLOWER, "lower"),
    ]
