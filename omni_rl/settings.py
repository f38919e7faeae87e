"""The base of what actors are started with; importable without torch."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from omni_rl.errors import ConfigError

DeviceKind = Literal["cpu", "cuda"]
"""What the trainer computes on. cuda: a device for each rank."""
Strategy = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]
"""How a placement group deals actors to nodes, by Ray's names; the strict ones would rather not place them."""
Transport = Literal["slab", "object_store"]
"""How weights get to engines. slab: all of them map the one that the trainer fills, in the memory of one host.
object_store: those on other hosts map slabs of their own, which get the weights through Ray's object store."""

Numerics = Literal["reference", "matched"]
"""What a trainer's forward computes with. reference: plain torch and compiled loops, on any machine. matched: vLLM's
own CPU operators, one sequence after the other: bit for bit the logprobs of an engine's prefill (docs/numerics.md)."""


def describe(error: ValidationError) -> str:
    """Every invalid setting by name, with what was given."""
    lines = [f"{'.'.join(map(str, item['loc']))}: {item['msg']} (got {item['input']!r})" for item in error.errors()]
    return "; ".join(lines)


class StrictSettings(BaseModel):
    """Frozen, without unknown names; what does not validate raises `ConfigError`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(f"{type(self).__name__}: {describe(error)}") from None
