"""A run's history that is brought in whole, also where figures are missing."""

import math

import numpy as np

from omni_rl.ledger.ledger import Ledger
from omni_rl_bench.history import bring_in


def test_a_count_that_is_not_given_is_none(ledger_url: str) -> None:
    with Ledger.open(ledger_url) as ledger:
        ledger.put_run("run", {}).result()
        bring_in(ledger, "run", 0, np.array([4, 6]), {"tokens": np.array([9.0, math.nan])}).result()
        assert [(row.key.step, row.tokens) for row in ledger.steps("run", 0)] == [(4, 9), (6, 0)]
