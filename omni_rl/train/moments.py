"""Names AdamW's state of a parameter as checkpoints do, and puts it where AdamW needs it."""

import torch

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def beside(parameter: torch.Tensor, moment: str, value: torch.Tensor) -> torch.Tensor:
    """Return a stored moment on its parameter's device; the count of steps stays on the host, where AdamW needs it."""
    return value if moment == "step" else value.to(parameter.device)
