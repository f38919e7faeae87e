"""Defines faults of what a job makes of answers and scores before it posts them. A fault takes the job's rig and a
seed."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from omni_rl.consistency.actions import Cause
from omni_rl.rollout.types import Rollout
from omni_rl_bench.sabotage import patches
from omni_rl_bench.sabotage.fault import Fault

EOS = 11
TOOL = slice(8, 12)
"""The tokens of an answer that a tool wrote, in runs with tools."""
Record = dict[str, Any]


def posted(change: Callable[[list[Record]], None], rig: Any, seed: int) -> None:
    """Change the records of every step."""

    def instead(original: Any) -> Callable[..., Any]:
        def put_part(run: str, attempt: int, step: int, rank: int, records: list[Record]) -> Any:
            change(records)
            return original(run, attempt, step, rank, records)

        return put_part

    patches.replace(rig.client, "put_part", instead)


def sampled(change: Callable[[Rollout], Rollout], rig: Any, seed: int) -> None:
    """Change every answer between the engine and the trainer."""

    def instead(original: Any) -> Callable[..., list[Rollout]]:
        return lambda *given: [change(rollout) for rollout in original(*given)]

    patches.replace(rig.policies, "sample", instead)


def with_tools(late: int, records: list[Record]) -> None:
    """Make some tokens a tool's: they have no logprob of the engine, and count for nothing; the mask may come `late`.

    The first change of a record stands: a fault is put around its run's setting.
    """
    for record in records:
        if "loss_mask" in record:
            continue
        logprobs = np.array(record["rollout_logprobs"], np.float64)
        logprobs[TOOL] = 0.0
        mask = np.ones(len(logprobs), np.bool_)
        mask[TOOL.start + late : TOOL.stop + late] = False
        record |= {"rollout_logprobs": logprobs, "loss_mask": mask}


def not_a_number(side: str, records: list[Record]) -> None:
    """Set one of a step's logprobs to NaN."""
    logprobs = np.array(records[len(records) // 2][f"{side}_logprobs"], np.float64)
    logprobs[len(logprobs) // 2] = np.nan
    records[len(records) // 2][f"{side}_logprobs"] = logprobs


def eos_appended(rollout: Rollout) -> Rollout:
    """Append an end that the engine did not sample, with a logprob of 0."""
    ids, logprobs = np.append(rollout.ids, EOS), np.append(rollout.logprobs, 0.0)
    spans = (*rollout.version_spans[:-1], replace(rollout.version_spans[-1], end=len(ids)))
    return replace(rollout, ids=ids, logprobs=logprobs, version_spans=spans, experts=None, sequence="")


def last_score_dropped(records: list[Record]) -> None:
    """Have the trainer drop an answer's last token, its end, and pad with 0."""
    for record in records:
        logprobs = np.array(record["train_logprobs"], np.float64)
        logprobs[-1] = 0.0
        record["train_logprobs"] = logprobs


def of_another_seed(rig: Any, seed: int) -> None:
    """Report the logprobs of other answers to the same prompts."""

    def instead(original: Any) -> Callable[..., list[Rollout]]:
        def sample(prompts: Any, sampling: Any) -> list[Rollout]:
            others = original(prompts, replace(sampling, seed=sampling.seed + 500))
            answers = original(prompts, sampling)
            return [replace(a, logprobs=b.logprobs) for a, b in zip(answers, others, strict=True)]

        return sample

    patches.replace(rig.policies, "sample", instead)


def stale_rank(told: bool, rig: Any, seed: int) -> None:
    """Score half of the answers by the weights before the last update; the record says so, if the fault is `told`."""
    name = f"stale-{seed}"
    rig.policies.trainer.take_snapshot(name)
    rig.learn(rig.sample(rig.last_sampling), seed + 1)
    rig.sync()

    def instead(original: Any) -> Callable[..., Any]:
        def score(rollouts: Any) -> Any:
            scores, old = original(rollouts), original(rollouts, name)
            half = len(scores) // 2
            if not told:
                old = [replace(score, version=scores[0].version) for score in old]
            return [*scores[:half], *old[half:]]

        return score

    patches.replace(rig.policies, "score", instead)


FAULTS = (
    Fault(
        "mask late by one",
        (Cause.LOSS_MASK,),
        partial(posted, partial(with_tools, 1)),
        side="job",
        setting=partial(posted, partial(with_tools, 0)),
    ),
    Fault("EOS appended", (Cause.LOSS_MASK,), partial(sampled, eos_appended), side="job"),
    Fault("EOS dropped", (Cause.LOSS_MASK,), partial(posted, last_score_dropped), side="job"),
    Fault("another seed's logprobs", (Cause.SAMPLE_PAIRING,), of_another_seed, side="job"),
    Fault(
        "one NaN, engine", (Cause.NONFINITE_LOGPROBS,), partial(posted, partial(not_a_number, "rollout")), side="job"
    ),
    Fault("one NaN, trainer", (Cause.NONFINITE_LOGPROBS,), partial(posted, partial(not_a_number, "train")), side="job"),
    Fault("a stale rank", (Cause.STALE_WEIGHTS,), partial(stale_rank, True), side="job", proven=True),
    Fault("a stale rank, untold", (Cause.STALE_WEIGHTS,), partial(stale_rank, False), side="job"),
)
