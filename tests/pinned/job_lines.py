"""The lines of a job as `omni-rl run` prints them, made by the loop itself against a policy that is a table."""

import json
from typing import Any

from omni_rl.jobs.command import as_line
from tests.jobs.fakes import Tabular
from tests.jobs.test_loop import QUESTIONS, grpo, ppo, run, task


def lines() -> dict[str, list[Any]]:
    """Two steps of each algorithm, the first with a measurement on held-out prompts."""
    found = {}
    for name, parameters in (("grpo", grpo(steps=2, evaluate_every=1)), ("ppo", ppo(steps=2, evaluate_every=1))):
        found[name] = [json.loads(as_line(done)) for done in run(parameters, Tabular(QUESTIONS), task())]
    return found
