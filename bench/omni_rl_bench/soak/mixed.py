"""Finds tokens of a soak's jobs that were sampled with other weights than their records say."""

from collections.abc import Iterator, Mapping
from typing import Any

from omni_rl.api.steps import StepLine
from omni_rl.client.blocking import Client
from omni_rl.errors import NotFoundError
from omni_rl_bench.soak.acknowledged import PAGE

PARTED = frozenset({"warn", "mask", "pause"})
"""The severities of a step whose sides differ by more than rounding. A job scores each token with the weights that it
is said to be sampled with, in float32: a token of any others is a difference of many times that."""


def mixed(client: Client, runs: list[str]) -> tuple[int, list[str]]:
    """Return how many steps of the jobs' `runs` were looked at, and what is wrong with which."""
    steps, wrong = 0, []
    for run in runs:
        for line in _steps(client, run):
            steps += 1
            verdict = client.step(run, line.attempt, line.step).verdict
            if verdict.severity in PARTED:
                wrong.append(f"step {run}/{line.step} is at {verdict.severity}: {verdict.sentence or verdict.reason}")
            for worst in verdict.worst:
                record = client.sample(run, line.attempt, line.step, worst.sample).record
                wrong += [f"step {run}/{line.step}, sample {worst.sample}: {what}" for what in unsaid(record)]
    return steps, wrong


def _steps(client: Client, run: str) -> list[StepLine]:
    try:
        return client.steps(run, limit=PAGE)
    except NotFoundError:  # its job ended before the first one
        return []


def unsaid(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield tokens of a record without a version, or with more than one."""
    at = 0
    for span in record["version_spans"] or ():
        if span["start"] != at or not span["version"]:
            yield f"the weights of token {at} are not said"
        at = span["end"]
    if at != len(record["ids"]):
        yield f"the weights of {len(record['ids'])} tokens are said for {at}"
