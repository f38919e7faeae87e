"""Every fault on one live pair, seed by seed, and clean steps for false alarms; what is done is kept, not redone."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omni_rl.consistency.attribution.evidence import mean_abs
from omni_rl.consistency.limits import Severity
from omni_rl.errors import ConfigError, OmniRLError
from omni_rl.rollout.settings import Dtype
from omni_rl.sabotage.faults import FAULTS, Fault
from omni_rl.sabotage.stand import Stand
from omni_rl.sabotage.trial import Trial, run_step, run_trial

REPLICAS = 2
"""One of them can be stale alone."""
BLOCK = 50
"""Clean steps between two lines of the record, and two sets of prompts."""
CLEAN_LEARNING_RATE = 1e-3
"""The demo's."""
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Record:
    """A file of JSON lines: one a trial, one a block of clean steps."""

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


def chosen(name: str | None) -> tuple[Fault, ...]:
    """Every fault, or those of that name. Raises `ConfigError` that lists the names."""
    found = tuple(fault for fault in FAULTS if name in (None, fault.name, fault.key))
    if not found:
        raise ConfigError(f"no fault {name!r}; there are: {', '.join(dict.fromkeys(f.name for f in FAULTS))}")
    return found


def sweep(
    model: Path, dtype: Dtype, faults: Sequence[Fault], seeds: Sequence[int], record: Record, progress: Progress
) -> None:
    """Try each fault with each seed that is not in the record yet. A pair that a fault broke for good is replaced."""
    known = {(t["fault"], t["moment"], t["seed"]) for t in record.lines("trial") if t["dtype"] == dtype}
    waiting = [(f, seed) for seed in seeds for f in faults if (f.name, f.moment, seed) not in known]
    while waiting:
        progress(f"{dtype}: starting Ray, {REPLICAS} engines and the trainer")
        with Stand(model, dtype, replicas=REPLICAS) as stand:
            for trial in _trials(stand, waiting):
                record.add({"kind": "trial", **trial.as_dict()})
                progress(told(trial))


def _trials(stand: Stand, waiting: list[tuple[Fault, int]]) -> Iterator[Trial]:
    """Until none is left, or the pair is not well any more."""
    while waiting:
        fault, seed = waiting.pop(0)
        try:
            trial = run_trial(stand, fault, seed)
        except OmniRLError as error:
            trial = Trial(fault.name, fault.moment, seed, stand.dtype, trouble=f"{type(error).__name__}: {error}"[:500])
        yield trial
        if not trial.healed:
            return


def clean(model: Path, dtype: Dtype, steps: int, first_seed: int, record: Record, progress: Progress) -> None:
    """Steps of a run in which nothing is broken, with a sync before each block: every alarm is a false one."""
    done = sum(block["steps"] for block in record.lines("clean") if block["dtype"] == dtype)
    if done >= steps:
        return
    progress(f"{dtype}: clean steps, {done} of {steps} are done")
    with Stand(model, dtype, learning_rate=CLEAN_LEARNING_RATE) as stand:
        while done < steps:
            count = min(BLOCK, steps - done)
            block = _clean_block(stand, first_seed + done, count)
            record.add({"kind": "clean", "dtype": dtype, **block})
            done += count
            progress(f"{dtype}: {done} clean steps, {block['logprob_alarms']} + {block['proof_alarms']} false alarms")


def _clean_block(stand: Stand, seed: int, steps: int) -> dict[str, Any]:
    stand.begin(seed)
    logprobs = proofs = 0
    worst = worst_sample = 0.0
    reasons: list[str] = []
    began = time.monotonic()
    seconds: dict[str, float] = {}
    for number in range(steps):
        step = run_step(stand, seed + number, seconds=seconds)
        if number % 10 == 0 and number:
            stand.learn(step.rollouts, seed + number)
            stand.pair.sync()
        over = step.judgement.severity > Severity.OK
        logprobs += over
        proofs += step.proven is not None
        worst = max(worst, step.figures["overall"]["logprob_abs_diff_mean"])
        worst_sample = max(worst_sample, *(mean_abs(sample.d) for sample in step.evidence))
        if over:
            reasons.append(step.judgement.reason)
        if step.proven is not None:
            reasons.append(step.proven.sentence)
    return {
        "steps": steps,
        "tokens": steps * sum(len(r.ids) for r in step.rollouts),
        "logprob_alarms": logprobs,
        "proof_alarms": proofs,
        "worst_abs_diff_mean": worst,
        "worst_sample_abs_diff_mean": worst_sample,
        "reasons": reasons[:5],
        "seconds": time.monotonic() - began,
        "seconds_by_part": seconds,
    }


def told(trial: Trial) -> str:
    """A trial in one line."""
    name = f"{trial.fault} ({trial.moment})"
    if trial.trouble:
        return f"{name:<46} {trial.trouble}"
    by = ", ".join(trial.by) or "not noticed"
    called = "" if trial.cause is None else f"  {trial.cause} ({'right' if trial.right else 'WRONG'})"
    return f"{name:<46} {by:<22}{called}  {trial.action}  {'healed' if trial.healed else 'NOT HEALED'}"
