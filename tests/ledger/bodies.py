"""Records of the smallest form and with every column, as JSON and as Arrow."""

import json
from typing import Any

import pyarrow as pa

from omni_rl.ledger.schema import VERSION

MINIMAL = {"sample": "a", "rollout_logprobs": [-1.0, -2.0], "train_logprobs": [-1.5, -2.0]}
DIGEST = "ab" * 32
WHOLE: dict[str, Any] = {
    "sample": "whole",
    "kind": "image",
    "prompt_tokens": 3,
    "prompt_ids": [5, 18, 18],
    "ids": [7, 8],
    "rollout_logprobs": [-1.0, -2.5],
    "train_logprobs": [-1.25, -2.5],
    "loss_mask": [True, False],
    "rollout_entropy": [0.5, 0.25],
    "train_entropy": [0.5, 0.0],
    "rollout_top_ids": [7, 9, 8, 7],
    "rollout_top_logprobs": [-1.0, -1.5, -2.5, -3.0],
    "temperature": 0.5,
    "reward": 1.0,
    "version_spans": [
        {"version": "r/0/1/ab", "start": 0, "end": 1, "mixed_state": False},
        {"version": "r/0/2/cd", "start": 1, "end": 2, "mixed_state": True},
    ],
    "train_version": "r/0/2/cd",
    "media": [
        {
            "modality": "image",
            "offset": 1,
            "length": 2,
            "content": DIGEST,
            "tensors": [{"name": "pixel_values", "rendered": "aa", "engine": "aa", "train": "bb"}],
        }
    ],
    "prompt_text": "what is this? <image>",
    "token_texts": ["a", " dog"],
    "moe_layers": 2,
    "experts_per_token": 1,
    "rollout_experts": [0, 1, 2, 3, 0, 1, 2, 3],
    "train_experts": [0, 1, 2, 3, 0, 1, 2, 2],
    "margins": [2.0**-20] * 8,
}


def document(*records: dict[str, Any]) -> str:
    return json.dumps({"schema": VERSION, "records": list(records)})


def stream(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())
