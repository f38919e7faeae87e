"""Whether jobs learn, and learn nothing where there is nothing to learn: digits, through the service."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omni_rl.api.jobs import GrpoParameters, PpoParameters
from omni_rl.api.steps import StepLine
from omni_rl.bench.result import BenchmarkError, Goal, write_result
from omni_rl.client.blocking import Client
from omni_rl.jobs.following import follow
from omni_rl.jobs.plot import plot

Say = Callable[[str], None]
SECONDS = 600.0
"""What a seed may take."""
STILL = 0.05
"""By how much a control's held-out reward may move."""
# A digit and the end of the turn are two tokens. Tuned on seed 100, which is not reported.
GRPO = {
    "steps": 121,
    "prompts": 64,
    "group": 4,
    "max_tokens": 2,
    "learning_rate": 4e-4,
    "evaluate_every": 20,
}
PPO = {
    "steps": 41,
    "prompts": 256,
    "epochs": 2,
    "minibatches": 2,
    "max_tokens": 2,
    "learning_rate": 3e-4,
    "evaluate_every": 20,
}


@dataclass(frozen=True)
class Case:
    """What is run with every seed. `reaches`: a held-out reward; None: a control, which stays where it is."""

    name: str
    kind: str
    parameters: Mapping[str, Any]
    reaches: float | None

    def of(self, seed: int) -> GrpoParameters | PpoParameters:
        """Its parameters."""
        model = GrpoParameters if self.kind == "grpo" else PpoParameters
        return model.model_validate({"run": f"{self.name}-{seed}", "seed": seed, **self.parameters})


CASES = (
    Case("grpo", "grpo", GRPO, 0.85),
    Case("ppo", "ppo", PPO, 0.75),
    Case("grpo-rate-0", "grpo", {**GRPO, "steps": 21, "learning_rate": 0.0}, None),
    Case("grpo-shuffled", "grpo", {**GRPO, "steps": 21, "task": "digits-shuffled"}, None),
)


def bench_learning(out: Path, seeds: Sequence[int], cases: Sequence[str], parts: Path, say: Say) -> Path:
    """Run what `parts` does not have yet, one after the other, and write `learning.json` to `out`.

    Each run's curve is drawn beside its part, as `omni-rl plot` draws it.
    """
    chosen = [case for case in CASES if case.name in cases or not cases]
    waiting = [(case, seed) for case in chosen for seed in seeds if not _part(parts, case, seed).exists()]
    if waiting:
        parts.mkdir(parents=True, exist_ok=True)
        with _service(say) as client:
            for case, seed in waiting:
                say(f"{case.name}, seed {seed}")
                result, drawing = _run(client, case, seed)
                _part(parts, case, seed).with_suffix(".svg").write_text(drawing)
                _part(parts, case, seed).write_text(json.dumps(result))
    results = {
        case.name: {str(seed): json.loads(_part(parts, case, seed).read_text()) for seed in seeds} for case in chosen
    }
    return write_result(out / "learning.json", "omni-rl bench learning", _goals(chosen, results), results)


def _part(parts: Path, case: Case, seed: int) -> Path:
    return parts / f"{case.name}-{seed}.json"


@contextmanager
def _service(say: Say) -> Iterator[Client]:
    """One of our own, as `omni-rl up` makes it, and nothing of it afterwards."""
    with tempfile.TemporaryDirectory(prefix="omni-rl-learning-") as folder:
        try:
            say("starting a service")
            answer = json.loads(_command("up", "--directory", folder, "--port", "0", "--json"))
            with Client(answer["url"], Path(answer["token_file"]).read_text()) as client:
                yield client
        finally:
            _command("down", "--directory", folder)


def _command(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "omni_rl", *arguments], stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        raise BenchmarkError(f"omni-rl {' '.join(arguments)} ended with exit code {done.returncode}")
    return done.stdout


def _run(client: Client, case: Case, seed: int) -> tuple[dict[str, Any], str]:
    """What it came to, and its curve."""
    parameters = case.of(seed)
    began = time.monotonic()
    job = follow(client, client.submit(parameters).job, None)
    seconds = time.monotonic() - began
    if job.status != "succeeded":
        raise BenchmarkError(f"{job.job} {job.status}: {job.message}; its log ends: {client.logs(job.job)[-2000:]}")
    steps = client.steps(parameters.run)
    held_out = {step.step: step.training["held_out_reward"] for step in steps if "held_out_reward" in step.training}
    result = {
        "parameters": parameters.model_dump(mode="json"),
        "seconds": round(seconds, 1),
        "held_out_reward": held_out,
        "reward": [round(step.training["reward"], 4) for step in steps],
        "steps_not_ok": sum(step.severity != "ok" for step in steps),
        "logprob_abs_diff_mean": {"largest of a step": max(_apart(steps))},
        "tokens": sum(step.tokens for step in steps),
    }
    return result, plot(parameters.run, steps)


def _apart(steps: Sequence[StepLine]) -> Iterator[float]:
    for step in steps:
        value = step.figures["logprob_abs_diff_mean"]
        yield float("nan") if value is None else value


def _goals(cases: Sequence[Case], results: Mapping[str, Mapping[str, Any]]) -> list[Goal]:
    """Of the worst seed of each case."""
    found = []
    for case in cases:
        runs = list(results[case.name].values())
        curves = [list(run["held_out_reward"].values()) for run in runs]
        if case.reaches is None:
            moved = max(abs(curve[-1] - curve[0]) for curve in curves)
            found.append(Goal(f"{case.name}: held-out reward moved by", moved, STILL, "lower"))
        else:
            reached = min(curve[-1] for curve in curves)
            found.append(Goal(f"{case.name}: held-out reward, worst seed", reached, case.reaches, "higher"))
            slowest = max(run["seconds"] for run in runs)
            found.append(Goal(f"{case.name}: seconds, slowest seed", slowest, SECONDS, "lower"))
        found.append(Goal(f"{case.name}: steps not ok", sum(run["steps_not_ok"] for run in runs), 0, "lower"))
    return found
