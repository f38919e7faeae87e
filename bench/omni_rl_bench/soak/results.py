"""Collects what a soak found, and the bars that it is held against."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from omni_rl.client.blocking import Client
from omni_rl.errors import NotFoundError, RayUnavailableError
from omni_rl_bench.own_service import OwnService
from omni_rl_bench.result import Goal
from omni_rl_bench.soak import memory
from omni_rl_bench.soak.chaos import Chaos
from omni_rl_bench.soak.load import PATIENT, Load
from omni_rl_bench.soak.measure import rises
from omni_rl_bench.soak.mixed import mixed

GROWTH = 1.10
SLOWER = 1.5
LOG_LINES = 5
"""How many lines of the log of a job that failed are in the results."""
ALL = 1000
"""More incidents than a soak has."""
REPLACED = "A trainer ("
"""The beginning of an incident about a trainer that was replaced, which is open until a person has read it."""


def kept(service: OwnService, load: Load, chaos: Chaos) -> dict[str, Any]:
    """Return whether the ledger has what was acknowledged, once; and how events, jobs and incidents went."""
    with service.client(PATIENT) as client:
        lost, twice = load.acknowledged.lost(client), load.acknowledged.twice(client)
        load.past(client)
        jobs = {name: job for name, job in load.jobs.items() if name not in load.stopped}
        unfinished = {name: job for name, job in jobs.items() if job.status != "succeeded"}
        logs = {name: [job.status, *_log(client, name)] for name, job in unfinished.items()}
        judged, wrong = mixed(client, [job.run for job in load.jobs.values()])
        silent = {one.run for one in client.incidents(ALL, kind="silence")} & load.acknowledged.posted.keys()
        away = client.incidents(ALL, kind="engine", is_open=True)
        gate = client.state().gate.gate
    seen = set(load.events)
    return {
        "acknowledged": load.acknowledged.counts(),
        "lost": lost,
        "twice": twice,
        "steps_of_jobs": judged,
        "mixed": wrong,
        "said_to_be_silent": sorted(silent),
        "said_to_be_away": [one.what for one in away if not one.what.startswith(REPLACED)],
        "events": len(load.events),
        "events_missed": max(seen, default=0) - len(seen),
        "events_twice": len(load.events) - len(seen),
        "jobs": dict(Counter(job.status for job in jobs.values())),
        "jobs_stopped_on_purpose": len(load.stopped),
        "jobs_whose_trainer_was_killed": sum(chaos.ended_trainer(job.began, job.ended) for job in unfinished.values()),
        "job_failures": logs,
        "engines_replaced": [{"at": round(at - load.began, 1), "why": why} for at, why in load.replaced.values()],
        "gate": gate,
    }


def _log(client: Client, job: str) -> list[str]:
    try:
        return client.logs(job).splitlines()[-LOG_LINES:]
    except (NotFoundError, RayUnavailableError) as error:  # it went with the Ray that had it
        return [str(error)]


def measured(load: Load, chaos: Chaos, sizes: Sequence[memory.Look], seconds: float) -> dict[str, Any]:
    """Return how the faults, the calls and the processes' memory went in the `seconds` of the load."""
    grown = memory.growth(sizes, seconds / 2, seconds)
    return {
        **chaos.figures(),
        "ready_and_not_able": chaos.ready_and_not_able(),
        "callers_broken": load.callers.broken,
        "memory_mib": {kind: {**asdict(its), "ratio": its.ratio} for kind, its in grown.items()},
        "calls": load.calls.figures(seconds),
        "failed": load.calls.failed,
        "failed_during_faults": dict(Counter(trouble.call for trouble in load.calls.troubles)),
    }


def _most(ratios: Sequence[float]) -> float:
    return max(ratios, default=float("nan"))


def goals(results: dict[str, Any]) -> list[Goal]:
    """Return the bars for what `soak` found."""
    jobs, sizes, faults = results["jobs"], results["memory_mib"], results["faults"]
    unfinished = sum(count for status, count in jobs.items() if status != "succeeded")
    ours = [size["ratio"] for kind, size in sizes.items() if kind not in memory.RAYS]
    rays = [size["ratio"] for kind, size in sizes.items() if kind in memory.RAYS]
    back = [fault["whole_after"] for fault in faults]
    late = sum(after is not None and after > fault["within"] for fault, after in zip(faults, back, strict=True))
    # A third has some hundred calls of a kind: the p99 of one is noise, that of most is not.
    medians, tails = rises(results["calls"], "p50"), rises(results["calls"], "p99")
    slowest = max(medians, default=float("nan"))
    tail = statistics.median(tails) if tails else float("nan")
    return [
        Goal("acknowledged steps, syncs, checks and media lost", len(results["lost"]), 0, "lower"),
        Goal("steps and syncs that are there twice, or were never posted", len(results["twice"]), 0, "lower"),
        Goal("events missed or told twice", results["events_missed"] + results["events_twice"], 0, "lower"),
        Goal("steps of jobs that were looked at", results["steps_of_jobs"], 1, "higher"),
        Goal("steps of jobs with tokens of other weights than is said", len(results["mixed"]), 0, "lower"),
        Goal("faults", len(faults), results["minutes"], "higher"),
        Goal("deaths", sum(fault["how"] == "kill" for fault in faults), results["minutes"] // 6, "higher"),
        Goal("kinds of fault that were not met", len(results["faults_missing"]), 0, "lower"),
        Goal("faults that the service did not get over", back.count(None), 0, "lower"),
        Goal("faults that it got over later than stated", late, 0, "lower"),
        Goal("faults that /readyz did not show in time", sum(f["unseen"] for f in faults), 0, "lower"),
        Goal("work refused while /readyz said ready", len(results["ready_and_not_able"]), 0, "lower"),
        Goal("calls failed while nothing was wrong", len(results["failed"]), 0, "lower"),
        Goal("callers that broke", len(results["callers_broken"]), 0, "lower"),
        Goal("live runs said to be silent", len(results["said_to_be_silent"]), 0, "lower"),
        Goal("members said to be away at the end", len(results["said_to_be_away"]), 0, "lower"),
        Goal("jobs succeeded", jobs.get("succeeded", 0), 1, "higher"),
        Goal(
            "jobs failed or unfinished whose trainer lived on",
            unfinished - results["jobs_whose_trainer_was_killed"],
            0,
            "lower",
        ),
        Goal("kinds of process followed over the last half", len(sizes), len(set(memory.KINDS.values())), "higher"),
        Goal("memory, the process of ours that grew most over the last half", _most(ours), GROWTH, "lower"),
        Goal("memory, the process of Ray's that grew most over the last half", _most(rays), GROWTH, "lower"),
        Goal("p50 latency, last third over first, the call that slowed most", slowest, SLOWER, "lower"),
        Goal("p99 latency, last third over first, median over the calls", tail, SLOWER, "lower"),
    ]
