"""Posted steps of a few answers, as a test has them."""

from collections.abc import Sequence

import numpy as np

from omni_rl.consistency.posted.step import Array, Index, PostedStep


def step(
    rollout: Sequence[float] | Array,
    train: Sequence[float] | Array,
    answers: int = 1,
    ids: Sequence[int] | Index | None = None,
) -> PostedStep:
    """Answers of equal length, all of whose tokens count."""
    return PostedStep(
        [f"a{n}" for n in range(answers)],
        ["text"] * answers,
        np.linspace(0, len(rollout), answers + 1).astype(np.int64),
        np.asarray(rollout, np.float64),
        np.asarray(train, np.float64),
        np.ones(len(rollout), np.bool_),
        np.ones(answers),
        ids=None if ids is None else np.asarray(ids, np.int64),
    )
