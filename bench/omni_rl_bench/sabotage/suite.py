"""Tries every fault on one live service, seed by seed; what was done already is not done again."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omni_rl.errors import OmniRLError
from omni_rl.service.settings import SMALL_CHECKPOINT
from omni_rl_bench.sabotage.fault import Fault
from omni_rl_bench.sabotage.rig import Pair, Rig, Say
from omni_rl_bench.sabotage.trial import Trial, run_trial

REPLICAS = 2
"""The number of engines: one of them can be stale alone."""


@dataclass(frozen=True)
class Record:
    """A file of JSON lines: one for each trial, one for each block of clean steps."""

    path: Path

    def add(self, line: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def lines(self, kind: str) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        found = [json.loads(line) for line in self.path.read_text().splitlines()]
        return [line for line in found if line["kind"] == kind]


def sweep(
    pair: Pair,
    faults: Sequence[Fault],
    seeds: Sequence[int],
    record: Record,
    say: Say,
    model: Path = SMALL_CHECKPOINT,
) -> None:
    """Try each fault with each seed that is not in the record yet. A service that a fault broke is replaced."""
    known = {(t["fault"], t["moment"], t["seed"]) for t in record.lines("trial") if t["pair"] == str(pair)}
    waiting = [(f, seed) for seed in seeds for f in faults if (f.name, f.moment, seed) not in known]
    while waiting:
        with Rig(pair, say, model=model, replicas=REPLICAS) as rig:
            for trial in _trials(rig, waiting):
                record.add({"kind": "trial", **trial.as_dict()})
                say(told(trial))


def _trials(rig: Rig, waiting: list[tuple[Fault, int]]) -> Iterator[Trial]:
    """Yield trials until none is left, or the service is not well any more."""
    while waiting:
        fault, seed = waiting.pop(0)
        try:
            trial = run_trial(rig, fault, seed)
        except OmniRLError as error:
            name = f"{type(error).__name__}: {error}"[:500]
            trial = Trial(fault.name, fault.moment, seed, str(rig.pair), trouble=name)
        yield trial
        if trial.trouble:
            return


def told(trial: Trial) -> str:
    """Describe a trial in one line."""
    name = f"{trial.fault} ({trial.moment})"
    if trial.trouble:
        return f"{name:<48} {trial.trouble}"
    by = trial.by or "not noticed"
    called = "" if trial.cause is None else f"  {trial.cause} ({'right' if trial.right else 'WRONG'})"
    healed = {True: "healed", False: "NOT HEALED", None: ""}[trial.healed]
    return f"{name:<48} {by:<12}{called}  {trial.action}  {healed}".rstrip()
