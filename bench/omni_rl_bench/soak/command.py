"""Runs `omni-rl soak`: everything at once for a while, with one fault after the other beside it."""

import time
from pathlib import Path

from omni_rl_bench.own_service import Say, own_folder, own_service
from omni_rl_bench.result import write_result
from omni_rl_bench.soak import memory
from omni_rl_bench.soak.chaos import Chaos
from omni_rl_bench.soak.ground import own_ground, require_root
from omni_rl_bench.soak.load import Load
from omni_rl_bench.soak.looks import read
from omni_rl_bench.soak.plan import Plan
from omni_rl_bench.soak.readiness import Readiness
from omni_rl_bench.soak.results import goals, kept, measured
from omni_rl_bench.soak.supervised import Supervised

UP = """
[up]
replicas = 2
world_size = 2
ledger = "sqlite:///{disk}/ledger.db"
"""
POSTERS, READERS = 4, 2
END_SECONDS = 400.0
"""The seconds for all callers to end after they were asked to: they may wait for the last job, or for a fault to
pass."""
LONGEST = 3
"""How many times its minutes a soak takes at most, where the machine is too slow for a round of faults in them."""


def soak(out: Path, minutes: float, seed: int, say: Say) -> Path:
    """Write `soak.json` to `out`. An interrupted soak writes nothing and leaves nothing running.

    Raises `BenchmarkError` for any user but root: it mounts file systems of its own.
    """
    require_root()
    with own_folder() as folder, own_ground(folder) as ground:
        config = folder / "up.toml"
        config.write_text(UP.format(disk=ground.disk.path))
        with own_service(say, "--config", str(config), folder=folder) as service:
            supervised = Supervised(service, ground.clock)
            supervised.begin()
            load, readiness, sizes = Load(service, seed), Readiness(), list[memory.Look]()
            chaos = Chaos(load, Plan(seed, minutes), readiness, supervised, ground)
            try:
                _start(load, chaos, readiness, sizes)
                say(f"load for {minutes:g} minutes")
                _wait(load, chaos, minutes, say)
            except BaseException:
                load.callers.ended.set()
                chaos.give_up()  # what it starts would outlive the service
                raise
            load.callers.ended.set()
            seconds = time.monotonic() - chaos.began
            load.last_event()
            load.callers.join(END_SECONDS)
            say("looking for what was acknowledged")
            found = {**kept(service, load, chaos), **measured(load, chaos, sizes, seconds)}
    results = {"minutes": round(seconds / 60, 1), "seed": seed, **found}
    return write_result(out / "soak.json", f"omni-rl soak --minutes {minutes:g} --seed {seed}", goals(results), results)


def _start(load: Load, chaos: Chaos, readiness: Readiness, sizes: list[memory.Look]) -> None:
    runs = [f"posted-{number}" for number in range(POSTERS)]
    load.acknowledged.steps.update({run: {} for run in runs})  # readers look at them from the start
    load.callers.start(readiness.follow, load)
    for run in runs:
        load.callers.start(load.post, run)
    for _ in range(READERS):
        load.callers.start(read, load)
    for call in (load.keep, load.follow, load.sync, load.check, load.pause, load.learn, chaos.run):
        load.callers.start(call)
    load.callers.start(memory.look, load.service.run, load.callers.ended, sizes)


def _wait(load: Load, chaos: Chaos, minutes: float, say: Say) -> None:
    """Wait until the time is over and every fault of a round has happened."""
    began, told = time.monotonic(), 0
    while (passed := (time.monotonic() - began) / 60) < minutes or (chaos.missing and passed < LONGEST * minutes):
        time.sleep(1)
        if passed >= told + 1:
            told = int(passed)
            say(
                f"minute {told} of {minutes:g}: {load.acknowledged.counts()['steps']} steps posted, "
                f"{len(load.jobs)} jobs, {len(chaos.met)} faults, {len(load.calls.failed)} calls failed"
            )
