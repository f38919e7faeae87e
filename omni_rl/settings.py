"""The base of what actors are started with; importable without torch."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from omni_rl.errors import ConfigError

DeviceKind = Literal["cpu", "cuda"]
"""What the trainer computes on. cuda: a device for each rank."""
Strategy = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]
"""How a placement group deals actors to nodes, by Ray's names; the strict ones would rather not place them."""
Transport = Literal["slab", "object_store", "vllm_nccl", "vllm_ipc"]
"""How weights get to engines. slab: all of them map the one that the trainer fills, in the memory of one host.
object_store: those on other hosts map slabs of their own, which get the weights through Ray's object store. vllm_nccl
and vllm_ipc: vLLM's own weight transfer sends what the slab has from a CUDA device of its host to the engines'."""
TransferBackend = Literal["nccl", "ipc"]
TRANSFERS: Mapping[Transport, TransferBackend] = {"vllm_nccl": "nccl", "vllm_ipc": "ipc"}
"""vLLM's name for the backend of each transport that is vLLM's own weight transfer."""
WITHOUT_DEVICES = 'take the transport "slab" for one host, or "object_store" for several: neither needs a device'
"""What to do where a transport of `TRANSFERS` cannot be used."""

Numerics = Literal["reference", "matched", "batch_invariant"]
"""What a trainer's forward computes with. reference: plain torch and compiled loops, on any machine. matched: vLLM's
own CPU operators, one sequence after the other: bit for bit the logprobs of an engine's prefill. batch_invariant: the
operators of a `batch_invariant` engine, bit for bit the logprobs that it samples with (docs/numerics.md)."""


class NumericsSettings(BaseModel):
    """What the policies compute in: `dtype` is that of the forward, `numerics` says by what the trainer computes it."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    numerics: Numerics = "reference"
    """Of the trainer; matched: bit for bit an engine's prefill, with vLLM's own CPU operators. batch_invariant: bit for
    bit what is sampled, in bfloat16; engines that are started beside it are batch-invariant too."""

    @model_validator(mode="after")
    def _invariant_in_bfloat16(self) -> Self:
        if self.numerics == "batch_invariant" and self.dtype != "bfloat16":
            raise ValueError('numerics "batch_invariant" is for dtype bfloat16, as engines are; take "matched" instead')
        return self

    @property
    def engine_is_batch_invariant(self) -> bool:
        """Whether engines beside such a trainer are to be started with `batch_invariant`."""
        return self.numerics == "batch_invariant"


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
