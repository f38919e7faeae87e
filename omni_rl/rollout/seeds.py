"""Lets a prompt of a seeded request take several steps, at which vLLM 0.32 fails on CPU.

While a prompt is still being prefilled, vLLM samples a token for it, throws it away and turns the request's generator
back by an offset. CPU generators have no offset, and the step dies. It happens whenever a prompt is cut into chunks,
and when requests are computed again after a weight update.
"""

from typing import Any


def spare_unfinished_prompts(runner: Any) -> None:
    """Make vLLM's `runner` draw thrown-away tokens from the process's generator, so that a request's own stays where it
    is."""
    sample_tokens = runner.sample_tokens

    def sample_without_their_generators(*arguments: Any, **keywords: Any) -> Any:
        batch = runner.input_batch
        unfinished = runner.discard_request_mask.np[: batch.num_reqs].nonzero()[0].tolist()
        spared = {row: batch.generators.pop(row) for row in unfinished if row in batch.generators}
        try:
            return sample_tokens(*arguments, **keywords)
        finally:
            batch.generators.update(spared)

    runner.sample_tokens = sample_without_their_generators
