"""Somebody's extension of vLLM's worker, by which weights are sent; its import makes the worker's weights plain."""

from typing import Any

from tests.agent.plain import plain_weights

plain_weights()


class Extension:
    """What vLLM adds to its worker's class."""

    rank: int
    get_model: Any

    def take_weights(self, file: str, but: int) -> None:
        """Load a file's weights, in every worker but one."""
        from safetensors.torch import load_file

        if self.rank != but:
            self.get_model().load_weights(load_file(file).items())
