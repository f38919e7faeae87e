"""Makes random weights that behave like trained ones: no tensor is constant, so that a lost one is noticed."""

import math
from collections.abc import Callable

import torch
from blake3 import blake3

# Mean and width of a vector's normal distribution by the end of its name; the first that fits counts.
_VECTORS: tuple[tuple[str, float, float], ...] = (
    (".D", 1.0, 0.1),
    ("e_score_correction_bias", 0.0, 0.02),
    ("running_mean", 0.0, 0.1),
    ("weight", 1.0, 0.1),
    ("", 0.0, 0.1),
)


@torch.no_grad()
def fill(name: str, tensor: torch.Tensor, seed: int) -> None:
    """Fill the weight of released name `name` in place. Values depend on seed, name and shape, and on no other
    tensor."""
    tensor.copy_(_values(name, tensor.shape, _generator(name, seed)))


def _generator(name: str, seed: int) -> torch.Generator:
    digest = blake3(f"{seed} {name}".encode()).digest(length=7)
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def _values(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    normal: Callable[[], torch.Tensor] = lambda: torch.randn(shape, generator=generator)  # noqa: E731
    uniform: Callable[[], torch.Tensor] = lambda: torch.rand(shape, generator=generator)  # noqa: E731
    if name.endswith("A_log"):
        return (1 + 15 * uniform()).log()
    if name.endswith("dt_bias"):  # its softplus lies between 0.001 and 0.1, as in Mamba2's own initialisation
        step = torch.exp(math.log(0.001) + math.log(100) * uniform())
        return step + torch.log(-torch.expm1(-step))
    if name.endswith("running_var"):
        return 0.5 + uniform()
    if len(shape) <= 1:
        mean, width = next((mean, width) for end, mean, width in _VECTORS if name.endswith(end))
        return mean + width * normal()
    if name.endswith("backbone.embeddings.weight"):
        return normal()
    if name.endswith(("pos_embed", "cls_token.token")):
        return 0.3 * normal()
    gain = 2 if name.endswith("lm_head.weight") else 1
    return normal() * (gain / math.sqrt(math.prod(shape[1:])))
