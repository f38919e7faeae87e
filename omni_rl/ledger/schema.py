"""The published schema of a step's records: what any framework may post, with one row for each sampled answer.

Letters: P prompt tokens, T sampled tokens, L MoE layers, K experts that a token chooses, M media items. Only `sample`,
`rollout_logprobs` and `train_logprobs` are required; every other column may be absent or null.
"""

from dataclasses import dataclass

import pyarrow as pa

from omni_rl.kinds import KINDS

VERSION = "omni_rl.step/1"
VERSION_KEY = b"omni_rl.schema"
"""The key under which the metadata of the stream's schema has the version; the JSON form has it as `schema`."""


@dataclass(frozen=True)
class Column:
    """A column of the schema. `length` says how long each row's list must be: P, T, or (P + T - 1) * L * K of the
    router's and so on."""

    name: str
    type: pa.DataType
    meaning: str
    length: str = ""
    required: bool = False


VERSION_SPAN = pa.struct(
    [
        pa.field("version", pa.string()),
        pa.field("start", pa.int32()),
        pa.field("end", pa.int32()),
        pa.field("mixed_state", pa.bool_()),
    ]
)
TENSOR = pa.struct(
    [
        pa.field("name", pa.string()),
        pa.field("rendered", pa.string()),
        pa.field("engine", pa.string()),
        pa.field("train", pa.string()),
    ]
)
MEDIA_ITEM = pa.struct(
    [
        pa.field("modality", pa.string()),
        pa.field("offset", pa.int32()),
        pa.field("length", pa.int32()),
        pa.field("content", pa.string()),
        pa.field("tensors", pa.list_(TENSOR)),
    ]
)

COLUMNS = (
    Column("sample", pa.string(), "Name of the answer, unique in its step.", required=True),
    Column("kind", pa.string(), f"{', '.join(KINDS[:-1])} or {KINDS[-1]}: the prompt's media. Absent: text."),
    Column("prompt_tokens", pa.int32(), "P. Absent: the length of prompt_ids, or 0."),
    Column("prompt_ids", pa.list_(pa.int32()), "The prompt's token ids, placeholders expanded.", "P"),
    Column("ids", pa.list_(pa.int32()), "The sampled token ids.", "T"),
    Column(
        "rollout_logprobs",
        pa.list_(pa.float64()),
        "Logprob of each sampled id, by the policy that sampled, at `temperature`.",
        "T",
        required=True,
    ),
    Column(
        "train_logprobs",
        pa.list_(pa.float64()),
        "Logprob of each sampled id, by the policy that learns, at the same temperature.",
        "T",
        required=True,
    ),
    Column("loss_mask", pa.list_(pa.bool_()), "Which sampled tokens count; the others are in no figure.", "T"),
    Column(
        "rollout_entropy",
        pa.list_(pa.float32()),
        "Entropy, in nats, of the distribution that each id was sampled from. Never needed: it sharpens causes.",
        "T",
    ),
    Column("train_entropy", pa.list_(pa.float32()), "Entropy, in nats, of the trainer's distribution.", "T"),
    Column(
        "rollout_top_ids",
        pa.list_(pa.int32()),
        "The k ids that the engine found likeliest for each token, token by token; k is one for all records, 1 to 32. "
        "Never needed: it sharpens causes.",
        "T * k",
    ),
    Column(
        "rollout_top_logprobs",
        pa.list_(pa.float32()),
        "The logprobs of rollout_top_ids in the distribution that sampled; -inf (null in JSON) for an id that could "
        "not be sampled.",
        "T * k",
    ),
    Column("temperature", pa.float64(), "The temperature of both logprobs. Absent: 1."),
    Column("reward", pa.float64(), "What the answer earned."),
    Column("version_spans", pa.list_(VERSION_SPAN), "Weights that sampled [start, end) of the answer, in order."),
    Column("train_version", pa.string(), "Weights that scored the answer."),
    Column(
        "media",
        pa.list_(MEDIA_ITEM),
        "Media items: their place in the prompt (offset and length 0: not known), the blake3 of their bytes in the "
        "media store, and the digest of each tensor as it was rendered, as the engine used it and as the trainer used "
        "it.",
    ),
    Column(
        "rollout_prompt_digest",
        pa.string(),
        "A digest of the prompt as the engine ran it: its ids, and the places that take media features.",
    ),
    Column("train_prompt_digest", pa.string(), "A digest of the prompt as the trainer ran it."),
    Column(
        "logprobs_of",
        pa.string(),
        "The distribution that rollout_logprobs are of: processed (the one that sampled, temperature and cuts "
        "applied), raw, or unknown. Absent: processed.",
    ),
    Column(
        "filtered",
        pa.string(),
        "What answers were filtered by after they were sampled: reward, length, logprobs. Absent: none were.",
    ),
    Column(
        "rollout_dtype",
        pa.string(),
        "The dtype in which the engine computed, as it says itself. Where train_dtype is another, a difference that "
        "the finer one does not have is reported. Absent: the run's dtype.",
    ),
    Column("train_dtype", pa.string(), "The dtype in which the trainer computed, as it says itself."),
    Column("prompt_text", pa.string(), "The prompt as text."),
    Column("token_texts", pa.list_(pa.string()), "Each sampled token as text.", "T"),
    Column("moe_layers", pa.int32(), "L, where the router's choices are given."),
    Column("experts_per_token", pa.int32(), "K, where the router's choices are given."),
    Column(
        "rollout_experts",
        pa.list_(pa.int16()),
        "The engine's choices for each computed position, layer by layer; -1 where a choice is not known.",
        "(P + T - 1) * L * K",
    ),
    Column("train_experts", pa.list_(pa.int16()), "The trainer's choices.", "(P + T - 1) * L * K"),
    Column(
        "margins",
        pa.list_(pa.float32()),
        "The trainer's gap between the last chosen and the first refused score.",
        "(P + T - 1) * L",
    ),
)

SCHEMA = pa.schema(
    [pa.field(column.name, column.type, nullable=not column.required) for column in COLUMNS],
    metadata={VERSION_KEY: VERSION.encode()},
)


@dataclass(frozen=True)
class RecordLimits:
    """How much one part may hold; a part with more is refused whole."""

    records: int = 16_384
    tokens: int = 8_388_608
    """The most sampled tokens of all records."""
    tokens_per_record: int = 1_048_576
    """The most tokens of one record's prompt and answer."""
    values_per_record: int = 268_435_456
    """The most router choices of one record."""
    text: int = 1_048_576
    """The most bytes of one string; those of a name are limited by `name`."""
    name: int = 512
    media_per_record: int = 256
    top: int = 32
    """The most of an engine's likeliest ids for one token."""
    kinds: tuple[str, ...] = KINDS
    """The kinds of prompt that records may name."""
