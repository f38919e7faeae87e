"""A long run in a ledger: made figures in the places of real ones, with one spike that no chart may lose."""

import numpy as np

from omni_rl.api.runs import RunBody
from omni_rl.ledger.history import bring_in
from omni_rl.ledger.ledger import Ledger

SPIKE = 0.37
"""The greatest mean abs d; one step has it."""
ATTEMPT = 1


def write_long_run(url: str, run: str, steps: int) -> None:
    """`steps` steps of `run`, bfloat16, into the ledger at `url`. Noise about 0.01, and `SPIKE` in its middle."""
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
