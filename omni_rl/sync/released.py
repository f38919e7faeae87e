"""The values that a weight sync sends: which dtype each released tensor travels and is served in."""

from collections.abc import Mapping

import torch

# The engine holds A and the router's bias in float32 whatever the model's dtype: rounded to bfloat16 before it gets
# them, the bias alone changed the routing of most tokens.
FLOAT32_SUFFIXES = (".A_log", ".gate.e_score_correction_bias")


def as_sent(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The released tensor `name` as sync sends it to an engine that serves in `dtype`; integers stay as they are."""
    if not tensor.is_floating_point():
        return tensor
    return tensor.to(torch.float32 if name.endswith(FLOAT32_SUFFIXES) else dtype)


def all_as_sent(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """`as_sent` for a whole set of released tensors; their `tensors_digest` is the weight version's digest."""
    return {name: as_sent(name, tensor, dtype) for name, tensor in tensors.items()}
