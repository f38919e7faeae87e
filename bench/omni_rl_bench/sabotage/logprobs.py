"""Defines faults of the logprobs and ids that an engine reports for what it sampled. A fault takes the engine and a
seed."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.actions import Cause
from omni_rl.rollout.types import Rollout
from omni_rl_bench.sabotage import patches
from omni_rl_bench.sabotage.fault import Fault

Array = NDArray[np.float64]
IDS = 512
"""How many ids of the vocabulary are text alone."""


def changed(change: Callable[[Rollout], Rollout], engine: Any, seed: int) -> None:
    """Change every answer before it leaves the engine."""

    def instead(original: Any) -> Callable[..., Any]:
        def answer(request: Any, output: Any) -> Any:
            found = original(request, output)
            return change(found) if isinstance(found, Rollout) else found

        return answer

    patches.replace(engine, "_answer", instead)


def shifted(rollout: Rollout) -> Rollout:
    """Move each logprob to the next token."""
    return replace(rollout, logprobs=np.roll(rollout.logprobs, 1))


def in_float16(rollout: Rollout) -> Rollout:
    return replace(rollout, logprobs=rollout.logprobs.astype(np.float16).astype(np.float64))


def last_id_altered(rollout: Rollout) -> Rollout:
    """Replace the last id by one that was not sampled; its logprob stays."""
    ids = rollout.ids.copy()
    ids[-1] = (ids[-1] + 1) % IDS
    return replace(rollout, ids=ids)


def of_another(first: int, engine: Any, seed: int) -> None:
    """Replace the logprobs from token `first` on by those of the answer that was finished before."""
    before: list[Array] = []

    def change(rollout: Rollout) -> Rollout:
        before.append(rollout.logprobs)
        if len(before) == 1:
            return rollout
        other = before.pop(0)[: len(rollout.logprobs)]
        found = rollout.logprobs.copy()
        at = first % len(other)
        found[at : len(other)] = other[at:]
        return replace(rollout, logprobs=found)

    changed(change, engine, seed)


FAULTS = (
    Fault("logprobs shifted by one", (Cause.TOKEN_SHIFT,), partial(changed, shifted)),
    Fault("logprobs in float16", (Cause.ROUNDING,), partial(changed, in_float16)),
    Fault("all logprobs of another request", (Cause.SAMPLE_PAIRING,), partial(of_another, 0)),
    Fault("last logprob of another request", (Cause.SAMPLE_PAIRING,), partial(of_another, -1)),
    # The trainer runs another id than the engine did; by the record alone, it scores a token that was not sampled.
    Fault(
        "last id altered",
        (Cause.PROMPT_MISMATCH, Cause.SAMPLE_PAIRING, Cause.LOSS_MASK),
        partial(changed, last_id_altered),
    ),
)
