"""AdamW's state of a parameter, as checkpoints have it."""

import torch

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def beside(parameter: torch.Tensor, moment: str, value: torch.Tensor) -> torch.Tensor:
    """A stored moment where AdamW wants it: where its parameter is, but for the count of steps, on the host."""
    return value if moment == "step" else value.to(parameter.device)
