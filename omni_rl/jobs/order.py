"""Which prompts and which seeds a step has: functions of the job's seed and the step's number alone, so that a resumed
job goes on as it would have."""

import numpy as np

SEED_BITS = 31


def prompts_of(step: int, count: int, available: int, seed: int) -> list[int]:
    """`count` numbers below `available`: epochs one after the other, each in an order of its own."""
    first = step * count
    chosen = []
    for place in range(first, first + count):
        epoch, index = divmod(place, available)
        order = np.random.default_rng([seed, epoch]).permutation(available)
        chosen.append(int(order[index]))
    return chosen


def seed_of(step: int, seed: int, purpose: int = 0) -> int:
    """The seed of a step's first request; others follow it."""
    state = np.random.SeedSequence([seed, step, purpose]).generate_state(1)
    return int(state[0]) >> (32 - SEED_BITS + 1)
