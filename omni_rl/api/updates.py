"""Defines what an engine's agent and a trainer report about an update of weights, and what came of it."""

from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field, JsonValue, StringConstraints

from omni_rl.api.base import MAX_INT, NO_NUL, Answer, Body, Name, example

MAX_PARTS = 65_536
"""The most parts of a worker, a trainer or an adapter in one body. The experts of a model with more are added up layer
by layer."""
MAX_ADAPTERS = 256
MAX_ALL_PARTS = 2**19
"""The most parts of one body, those of its adapters included."""
MAX_VALUES = 2**23
"""The most names and values of one body: enough for as many parts as there may be, and for their adapters."""
MAX_NAMED = 64
"""The most names that are spelled out in a list; the counts are of all."""
PartName = Annotated[str, StringConstraints(pattern=r"^[^\x00]{1,256}$")]
CLOSED: dict[str, JsonValue] = {"additionalProperties": False}
"""An entry for the JSON schema of a mapping: without it the schema would allow keys that do not match their pattern."""
Sentence = Annotated[str, StringConstraints(pattern=NO_NUL, max_length=1024)]
Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
Count = Annotated[int, Field(ge=0, le=2**53)]
Small = Annotated[int, Field(ge=0, le=MAX_INT)]
Number = Annotated[float, Field(ge=0)]
Cache = Literal["prefix", "encoder", "multimodal"]
Dtype = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_~]{1,32}$")]
"""A dtype's name; float32~bfloat16 is of float32 values that were rounded to bfloat16 on the way."""


class Sum(NamedTuple):
    """A fingerprint: see `omni_rl.agent.fingerprint`."""

    dtype: Dtype
    elements: Count
    hashes: Hash
    squares: Number = 0.0
    nonfinite: Count = 0


class HeldPart(NamedTuple):
    """A part, one logical matrix or vector, as one worker holds it. `shard` says which of how many equal shares of the
    part the worker holds, as 2/4; empty where it is not known. `changed` says whether this update changed the part."""

    sum: Sum
    shard: Annotated[str, StringConstraints(pattern=r"^([1-9][0-9]{0,5}/[1-9][0-9]{0,5})?$")] = ""
    changed: bool = True


class Adapter(Body):
    """A LoRA adapter. Its parts are the matrices of each module, `...lora_A` and `...lora_B`, the second with the scale
    multiplied in, as engines hold it."""

    most_values: ClassVar[int] = MAX_VALUES

    name: Annotated[str, StringConstraints(pattern=NO_NUL, max_length=256)]
    rank: Small
    targets: tuple[Annotated[str, StringConstraints(pattern=NO_NUL, max_length=128)], ...] = Field(
        default=(), max_length=MAX_NAMED
    )
    norm: Number = Field(default=0.0, description="The norm of all the adapter's matrices together.")
    parts: dict[PartName, tuple[Sum, ...]] = Field(default_factory=dict, max_length=MAX_PARTS, json_schema_extra=CLOSED)


class EngineRenames(Body):
    """How an engine renames what a checkpoint holds: substrings, then prefixes, then suffixes; null drops the name."""

    substrings: dict[PartName, Annotated[str, StringConstraints(pattern=NO_NUL, max_length=256)] | None] = Field(
        default_factory=dict, max_length=MAX_NAMED, json_schema_extra=CLOSED
    )
    prefixes: dict[PartName, Annotated[str, StringConstraints(pattern=NO_NUL, max_length=256)] | None] = Field(
        default_factory=dict, max_length=MAX_NAMED, json_schema_extra=CLOSED
    )
    suffixes: dict[PartName, Annotated[str, StringConstraints(pattern=NO_NUL, max_length=256)] | None] = Field(
        default_factory=dict, max_length=MAX_NAMED, json_schema_extra=CLOSED
    )


class ReceiptBody(Body):
    """What one worker of an engine holds after an update, whichever process made the update. Counts are of the engine's
    own tensors."""

    most_values: ClassVar[int] = MAX_VALUES

    session: Annotated[str, StringConstraints(pattern=NO_NUL, min_length=1, max_length=64)] = Field(
        description="A name of this start of the engine; each start numbers its updates anew."
    )
    worker: Annotated[int, Field(ge=0, le=65535)] = 0
    workers: Annotated[int, Field(ge=1, le=65536)] = 1
    at: float = Field(description="Unix seconds, by the worker's clock.")
    began: float = Field(description="When the first weight was written, in Unix seconds.")
    how: tuple[Annotated[str, StringConstraints(pattern=NO_NUL, max_length=64)], ...] = Field(
        max_length=MAX_NAMED,
        description="The entry points that wrote, in order: load_weights, reload_weights, in_place, ...",
    )
    of: Small | None = Field(default=None, description="The trainer's number of the update, where the worker knows it.")
    version: Annotated[str, StringConstraints(pattern=NO_NUL, max_length=256)] | None = Field(
        default=None, description="The weight version that the engine claims."
    )
    seconds: Number = Field(default=0.0, description="The seconds that the fingerprints took.")
    tensors: Small
    changed: Small
    zero: tuple[PartName, ...] = Field(
        default=(), max_length=MAX_NAMED, description="Tensors that the update changed to zeros."
    )
    nonfinite: tuple[PartName, ...] = Field(default=(), max_length=MAX_NAMED)
    caches: dict[Cache, Small] = Field(
        default_factory=dict,
        description="The engine's caches, with the number of its update that each was last reset with; 0: the start.",
    )
    parts: dict[PartName, HeldPart] = Field(max_length=MAX_PARTS, json_schema_extra=CLOSED)
    opaque: dict[PartName, Sentence] = Field(
        default_factory=dict,
        max_length=MAX_PARTS,
        json_schema_extra=CLOSED,
        description="The parts that cannot be compared, and why.",
    )
    adapters: tuple[Adapter, ...] | None = Field(
        default=None, max_length=MAX_ADAPTERS, description="The adapters that are loaded; null: the engine takes none."
    )
    renames: EngineRenames = EngineRenames()

    model_config = example(
        session="k3v9a",
        worker=0,
        workers=1,
        at=1795500000.2,
        began=1795500000.0,
        how=["load_weights"],
        of=12,
        version="12",
        seconds=0.004,
        tensors=290,
        changed=290,
        caches={"prefix": 12},
        parts={"layers.0.self_attn.q_proj.weight": [["bfloat16", 4096, "00c0ffee00c0ffee", 1.9, 0], "1/1"]},
    )


class AnnouncementBody(Body):
    """The trainer's weights as of its update of this number. Each part comes in every dtype that an engine may hold it
    in."""

    most_values: ClassVar[int] = MAX_VALUES

    session: Annotated[str, StringConstraints(pattern=NO_NUL, max_length=64)] = Field(
        default="", description="A name of this start of the trainer; each start numbers its updates anew."
    )
    at: float = Field(description="Unix seconds, by the trainer's clock, before anything is sent to an engine.")
    parts: dict[PartName, tuple[Sum, ...]] = Field(max_length=MAX_PARTS, json_schema_extra=CLOSED)
    adapters: tuple[Adapter, ...] = Field(default=(), max_length=MAX_ADAPTERS)
    engines: tuple[Name, ...] = Field(
        default=(), max_length=4096, description="The engines that must confirm; if empty, all."
    )

    model_config = example(
        at=1795500000.0,
        parts={"model.layers.0.self_attn.q_proj.weight": [["bfloat16", 4096, "00c0ffee00c0ffee", 1.9, 0]]},
    )


class FindingAnswer(Answer):
    """One thing that is wrong with an update."""

    cause: str
    sentence: str
    parts: list[str] = Field(default_factory=list, description="The first of the parts that it is about.")


class UpdateAnswer(Answer):
    """An engine's update, or without an engine the trainer's, and what came of it."""

    number: int
    engine: str | None
    at: float = Field(description="Unix seconds.")
    of: int | None = Field(description="The trainer's update that this one is compared with.")
    workers: int
    reported: int = Field(description="How many workers have reported.")
    how: list[str]
    version: str | None
    tensors: int
    changed: int
    equal: int = Field(description="How many parts equal the trainer's to the bit.")
    different: int
    not_comparable: int
    reasons: dict[str, int] = Field(description="Why parts were not comparable, and how many parts.")
    adapters: list[str]
    findings: list[FindingAnswer]
    seconds: float
