"""Writes a long run, and many runs, into a ledger: made figures in the places of real ones, one spike that no chart may
lose."""

import random
import time

import numpy as np
import sqlalchemy as sa
from omni_rl_services.coordinator.lines import RECENT, Line
from omni_rl_services.coordinator.roster import read_run

from omni_rl.api.runs import RunBody
from omni_rl.consistency.incidents import Figure, GoodStep
from omni_rl.consistency.limits import Severity
from omni_rl.consistency.policy import Drift
from omni_rl.kinds import OVERALL
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.tables import attempts, runs, steps
from omni_rl.ledger.types import Run
from omni_rl_bench.history import bring_in

SPIKE = 0.37
"""The greatest mean abs d; one step has it."""
ATTEMPT = 1
TASKS = ("digits", "halves", "math", "code", "chat", "video", "speech")
METHODS = ("grpo", "ppo", "dapo", "rloo")


def write_long_run(url: str, run: str, steps: int) -> None:
    """Write `steps` steps of `run`, bfloat16, into the ledger at `url`: noise about 0.01, and `SPIKE` in its middle."""
    rng = np.random.default_rng(0)
    mean = 0.01 * np.exp(0.3 * rng.standard_normal(steps))
    mean[steps // 2] = SPIKE
    figures = {
        "tokens": np.full(steps, 4096.0),
        "logprob_abs_diff_mean": mean,
        "logprob_abs_diff_p99": 5 * mean,
        "logprob_abs_diff_max": np.where(mean == SPIKE, SPIKE, 0.3 * mean / mean.max()),
        "gen_kl_error": mean**2,
        "token_mult_prob_error": np.exp(mean),
    }
    body = RunBody(run=run, model="made for measuring", dtype="bfloat16")
    with Ledger.open(url) as ledger:
        ledger.put_run(run, body.model_dump(mode="json")).result()
        severity = np.where(mean == SPIKE, 2, 0)
        bring_in(ledger, run, ATTEMPT, np.arange(steps), figures, severity=severity).result()


def write_many_runs(url: str, count: int) -> None:
    """Write `count` runs that are over into the ledger at `url`, each with a step, its recent figures and where it
    stands.

    One in a hundred drifts. Their names are words and numbers, as people choose them.
    """
    noise = random.Random(0)  # noqa: S311 - figures, no secrets
    now = time.time()
    kept_runs, kept_attempts, kept_steps = [], [], []
    for number in range(count):
        name = f"{noise.choice(TASKS)}-{noise.choice(METHODS)}-{number:05d}"
        body = RunBody(run=name, model="made for measuring", dtype="bfloat16").model_dump(mode="json")
        created = now - noise.random() * 1e7
        drifts = number % 100 == 0
        recent = tuple((step, noise.random(), 0.01 * noise.random()) for step in range(RECENT))
        figure = Figure(OVERALL, "logprob_abs_diff_mean", 0.2, 0.1) if drifts else None
        own = Severity.MASK if drifts else Severity.OK
        run = read_run(Run(name, created, body), settle=3, silent_after=1800.0)
        line = Line(1, RECENT - 1, created, own, figure, GoodStep(1, RECENT - 2, f"{name}/1/30/9f2c3c1d"), recent)
        new = run.after(drift=Drift(severity=own), activity="ended", line=line)
        place = {"need": new.place.need, "sealed": created, "due": None}
        kept_runs.append({"run": name, "created": created, "config": body, "state": new.state, **place})
        kept_attempts.append({"id": number + 2, "run": name, "attempt": 1, "started": created})
        row = {"attempt_id": number + 2, "step": RECENT - 1, "sealed": created, "severity": int(own)}
        kept_steps.append(
            {**row, "samples": 0, "tokens": 0, "verdict": {}, "training": {}, "weight_version": "", "digest": ""}
        )

    def operation(connection: sa.Connection) -> None:
        for table, rows in ((runs, kept_runs), (attempts, kept_attempts), (steps, kept_steps)):
            connection.execute(sa.insert(table), rows)

    with Ledger.open(url) as ledger:
        ledger.writer.submit(operation).result()
