"""The values that a weight sync sends: which dtype each released tensor travels and is served in."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

# The engine holds A and the router's bias in float32 whatever the model's dtype: rounded to bfloat16 before it gets
# them, the bias alone changed the routing of most tokens.
FLOAT32_SUFFIXES = (".A_log", ".gate.e_score_correction_bias")

LAYER_SCALES = re.compile(r"vision_model\.radio_model\.model\.blocks\.\d+\.(ls|layer_scale)[12](\..*)?")
"""Identities of the vision tower, as transformers' native class stores them."""

# Some checkpoints store them too; both sides make them from the configuration instead.
DERIVED = (
    re.compile(r"vision_model\.radio_model\.(summary_idxs|input_conditioner\..*)"),
    LAYER_SCALES,
    re.compile(r"vision_model\.summary_idxs"),
    re.compile(r"sound_encoder\.encoder\.feature_extractor\..*"),
)


@dataclass(frozen=True)
class TensorSpec:
    """What is sent under one released name."""

    dtype: torch.dtype
    shape: tuple[int, ...]


def is_sent(name: str) -> bool:
    """Whether the released tensor `name` is a weight: sent, held and counted in a version's digest by both sides."""
    return not any(pattern.fullmatch(name) for pattern in DERIVED)


def as_sent(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The released tensor `name` as sync sends it to an engine that serves in `dtype`; integers stay as they are."""
    return tensor.to(sent_dtype(name, tensor.dtype, dtype))


def sent_dtype(name: str, own: torch.dtype, dtype: torch.dtype) -> torch.dtype:
    """What `as_sent` makes of a tensor of the dtype `own`."""
    if not own.is_floating_point:
        return own
    return torch.float32 if name.endswith(FLOAT32_SUFFIXES) else dtype


def all_as_sent(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The weights among released tensors, each `as_sent`; their `weights_digest` is the weight version's digest."""
    return {name: as_sent(name, tensor, dtype) for name, tensor in tensors.items() if is_sent(name)}
