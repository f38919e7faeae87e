"""The base of the settings that actors are started with. It can be imported without torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails

from omni_rl.errors import ConfigError

M = TypeVar("M", bound=BaseModel)
DeviceKind = Literal["cpu", "cuda"]
"""The kind of device that the trainer computes on; with cuda, each rank has a device."""
Strategy = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]
"""How a placement group deals actors to nodes, by Ray's names; the strict strategies place none if they cannot keep to
it."""
Transport = Literal["slab", "object_store", "vllm_nccl", "vllm_ipc"]
"""How weights get to the engines. slab: all engines map the slab that the trainer fills, in the memory of one host.
object_store: engines on other hosts map slabs of their own, which get the weights through Ray's object store. vllm_nccl
and vllm_ipc: vLLM's own weight transfer sends the slab's content from a CUDA device of its host to the devices of the
engines."""
TransferBackend = Literal["nccl", "ipc"]
TRANSFERS: Mapping[Transport, TransferBackend] = {"vllm_nccl": "nccl", "vllm_ipc": "ipc"}
"""vLLM's name for the backend of each transport that is vLLM's own weight transfer."""
WITHOUT_DEVICES = 'take the transport "slab" for one host, or "object_store" for several: neither needs a device'
"""The advice of an error where a transport of `TRANSFERS` cannot be used."""

Numerics = Literal["reference", "matched", "batch_invariant"]
"""What a trainer's forward computes with. reference: plain torch and compiled loops, on any machine. matched: vLLM's
own CPU operators, one sequence after the other, whose logprobs equal those of an engine's prefill bit for bit.
batch_invariant: the operators of a `batch_invariant` engine, whose logprobs equal those that it samples with bit for
bit (docs/numerics.md)."""


class NumericsSettings(BaseModel):
    """What the policies compute in: `dtype` is that of the forward, `numerics` says what the trainer computes it
    with."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    numerics: Numerics = "reference"
    """The trainer's numerics. matched: bit for bit an engine's prefill, with vLLM's own CPU operators. batch_invariant:
    bit for bit what is sampled, in bfloat16; engines that are started beside it are batch-invariant too."""

    @model_validator(mode="after")
    def _invariant_in_bfloat16(self) -> Self:
        if self.numerics == "batch_invariant" and self.dtype != "bfloat16":
            raise ValueError('numerics "batch_invariant" is for dtype bfloat16, as engines are; take "matched" instead')
        return self

    @property
    def engine_is_batch_invariant(self) -> bool:
        """Whether engines beside such a trainer are to be started with `batch_invariant`."""
        return self.numerics == "batch_invariant"


def validated(model: type[M], values: Any) -> M:
    """Return the model that the values give. Raises `ConfigError`, which lists every invalid one by name."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error)) from None


def describe(error: ValidationError) -> str:
    """Return one text that lists every invalid setting by name, with what is wrong and what was given."""
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}{_given(item)}" for item in error.errors())


def _given(item: ErrorDetails) -> str:
    """Return what was given for a setting, unless there may be a secret in it: in a section, whose other settings are
    in it too, or in a setting that is none."""
    given = item["input"]
    if item["type"] == "extra_forbidden" or not (given is None or isinstance(given, str | int | float | Path)):
        return ""
    return f" (got {given!r})"


class StrictSettings(BaseModel):
    """Settings that are frozen and accept no unknown names. Values that do not validate raise `ConfigError`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(f"{type(self).__name__}: {describe(error)}") from None
