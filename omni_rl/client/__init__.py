"""What other processes use of omni-rl; importing it needs neither torch nor Ray."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omni_rl.client.weights import Published, publish

__all__ = ["Published", "publish"]


def __getattr__(name: str) -> Any:
    """Weights need torch, which a program that only talks to the coordinator may not have."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from omni_rl.client import weights

    return getattr(weights, name)
