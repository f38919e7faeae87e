"""Translates released checkpoint names to internal names and back, one tensor at a time, bit for bit."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from omni_rl.errors import CheckpointError
from omni_rl.models.nemotron_omni.released import RELEASED

# Some checkpoints store these biases although their configuration turns them off; the engine ignores them too.
_SURPLUS = re.compile(r"sound_encoder\.encoder\.layers\.\d+\.conv\.(pointwise_conv[12]|depthwise_conv)\.bias")

# Longest prefix first; the text after a prefix goes on through `_INNER`.
_PREFIXES = (
    ("vision_model.radio_model.model.patch_generator.", "vision_model.embeddings."),
    ("vision_model.radio_model.model.blocks.", "vision_model.encoder.layer."),
    ("mlp1.0.", "vision_projector.norm."),
    ("mlp1.1.", "vision_projector.linear1."),
    ("mlp1.3.", "vision_projector.linear2."),
    ("sound_encoder.encoder.", "sound_encoder."),
    ("sound_projection.", "sound_projection."),
    ("language_model.backbone.embeddings.", "language_model.model.embed_tokens."),
    ("language_model.backbone.layers.", "language_model.model.layers."),
    ("language_model.backbone.norm_f.", "language_model.model.norm."),
    ("language_model.lm_head.", "language_model.lm_head."),
)

# (internal prefix, released part, internal part)
_INNER = (
    ("vision_model.embeddings.", "embedder.", "patch_projection."),
    ("vision_model.embeddings.", "video_embedder.", "video_patch_projection."),
    ("vision_model.embeddings.", "pos_embed", "position_embedding"),
    ("vision_model.embeddings.", "cls_token.token", "cls_register_token"),
    ("vision_model.encoder.layer.", ".attn.", ".attention."),
    ("language_model.model.layers.", ".mixer.A_log", ".mixer.decay.A_log"),
)

_RELEASED_EXPERT = re.compile(r"(.*\.mixer\.experts\.)(\d+)\.(up_proj|down_proj)\.weight")
_STACKED_EXPERTS = re.compile(r"(.*\.mixer\.experts\.)(up_proj|down_proj)")


@dataclass(frozen=True)
class Target:
    """Where a released tensor goes: the internal tensor `name`, or its slice `expert` along the first dimension."""

    name: str
    expert: int | None = None


class NemotronOmniStateDictAdapter:
    """Maps names; experts are stacked internally and single in a checkpoint, everything else is one to one."""

    def target(self, released: str) -> Target | None:
        """Return where the released tensor goes, or None if it is derived from the configuration.

        Raises `CheckpointError` for a name that no Nemotron Omni has.
        """
        if not RELEASED.is_sent(released):
            return None
        internal = _translate(released)
        expert = _RELEASED_EXPERT.fullmatch(internal)
        if expert is None:
            return Target(internal)
        return Target(f"{expert[1]}{expert[3]}", int(expert[2]))

    def convert_single_tensor_to_hf(
        self, fqn: str, tensor: torch.Tensor, **kwargs: Any
    ) -> list[tuple[str, torch.Tensor]]:
        """Return the released tensors that the internal tensor `fqn` holds: one, or one an expert."""
        stacked = _STACKED_EXPERTS.fullmatch(fqn)
        if stacked is None:
            return [(_translate(fqn, back=True), tensor)]
        prefix = _translate(stacked[1], back=True)
        return [(f"{prefix}{index}.{stacked[2]}.weight", slice_) for index, slice_ in enumerate(tensor)]

    def to_hf(
        self, state_dict: Mapping[str, torch.Tensor], exclude_key_regex: str | None = None, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """Return a whole internal state dict in released names. Experts are views of their stack.

        A tensor is left out if `exclude_key_regex` matches the beginning of its internal or its released name.
        """
        found = {}
        for name, tensor in state_dict.items():
            for released, part in self.convert_single_tensor_to_hf(name, tensor):
                names = (name, released)
                if exclude_key_regex is None or not any(re.match(exclude_key_regex, each) for each in names):
                    found[released] = part
        return found

    def from_hf(self, hf_state_dict: Mapping[str, torch.Tensor], **kwargs: Any) -> dict[str, torch.Tensor]:
        """Return a whole released state dict in internal names, without the derived tensors."""
        whole: dict[str, torch.Tensor] = {}
        experts: dict[str, dict[int, torch.Tensor]] = {}
        for released, tensor in hf_state_dict.items():
            target = self.target(released)
            if target is None:
                continue
            if target.expert is None:
                whole[target.name] = tensor
            else:
                experts.setdefault(target.name, {})[target.expert] = tensor
        for name, slices in experts.items():
            absent = sorted(set(range(max(slices) + 1)) - slices.keys())
            if absent:
                raise CheckpointError(f"{name} lacks experts {absent}; the checkpoint is incomplete")
            whole[name] = torch.stack([slices[index] for index in range(len(slices))])
        return whole

    def require(
        self, model_state: Mapping[str, torch.Tensor], stored: Mapping[str, Sequence[int]]
    ) -> list[tuple[str, Target]]:
        """Return which of the released tensors, given with their shapes, go where in a model's own; all of those get
        one.

        Raises `CheckpointError` that lists every missing, unexpected or misshapen tensor.
        """
        expected = {
            released: part.shape
            for name, tensor in model_state.items()
            for released, part in self.convert_single_tensor_to_hf(name, torch.empty(tensor.shape, device="meta"))
        }
        problems, found = [], []
        for name, shape in stored.items():
            try:
                target = self.target(name)
            except CheckpointError:
                problems.append(f"unexpected {name}")
                continue
            if target is None or (name not in expected and _SURPLUS.fullmatch(name)):
                continue
            own = expected.pop(name, None)
            if own is None:
                problems.append(f"unexpected {name}")
            elif tuple(own) != tuple(shape):
                problems.append(f"shape of {name}: {list(shape)} in the checkpoint, {list(own)} here")
            else:
                found.append((name, target))
        problems += [f"missing {name}" for name in sorted(expected)]
        if problems:
            raise CheckpointError("the checkpoint does not fit its configuration:\n  " + "\n  ".join(problems))
        return found

    def load(self, model_state: Mapping[str, torch.Tensor], released: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Copy released tensors into a model's own tensors, in the model's dtypes. Raises as `require` does."""
        tensors = dict(released)
        for name, target in self.require(model_state, {name: tensor.shape for name, tensor in tensors.items()}):
            own = model_state[target.name]
            with torch.no_grad():
                (own if target.expert is None else own[target.expert]).copy_(tensors[name])


def _translate(name: str, back: bool = False) -> str:
    for released, internal in _PREFIXES:
        source, target = (internal, released) if back else (released, internal)
        if not name.startswith(source):
            continue
        rest = name.removeprefix(source)
        for prefix, released_part, internal_part in _INNER:
            old, new = (internal_part, released_part) if back else (released_part, internal_part)
            # A part without a leading dot stands at the beginning of the rest.
            fits = rest.startswith(old) if not old.startswith(".") else old in rest
            if prefix == internal and fits:
                rest = rest.replace(old, new, 1)
                break
        return target + rest
    raise CheckpointError(f"{name} is no tensor of Nemotron Omni; remove it or use the checkpoint's own loader")
