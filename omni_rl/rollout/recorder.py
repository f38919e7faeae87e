"""Records what the engine's model received and chose, step by step: the evidence on the rollout's side.

Shapes: R rows of one step (all requests together), L MoE layers, K experts per token.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

from omni_rl.media.digests import tensor_digest

# The field that counts the rows of an item, for each field of which it holds several; of all others it holds one.
ROWS_PER_ITEM = {
    "pixel_values_flat_video": "video_num_patches",
    "input_audio_features": "audio_num_clips",
    "feature_attention_mask": "audio_num_clips",
}


def split_items(batch: Mapping[str, Any], count: int) -> list[dict[str, torch.Tensor]]:
    """Split one modality's batch into the tensors of each of its `count` media items; sizes and counts become int64
    tensors."""
    items: list[dict[str, torch.Tensor]] = [{} for _ in range(count)]
    for name, value in batch.items():
        parts = value.split([int(rows) for rows in batch[ROWS_PER_ITEM[name]]]) if name in ROWS_PER_ITEM else value
        for item, part in zip(items, parts, strict=True):
            item[name] = torch.as_tensor(part)
    return items


@dataclass
class StepRecorder:
    """Records the steps of one engine; see `attach`, which connects it to the engine's model runner and model.

    Expert choices are kept per request and position. A position that is computed again (preemption, new weights) keeps
    the last choice, because the later tokens depended on it. Within a position choices are sorted, because the router
    returns them in no order.
    """

    runner: Any
    layers: int
    experts_per_token: int
    _choices: dict[str, NDArray[np.int16]] = field(default_factory=dict)
    _digests: dict[str, dict[str, str]] = field(default_factory=dict)
    _step: dict[int, torch.Tensor] = field(default_factory=dict)
    _kept: dict[str, NDArray[np.bool_] | None] = field(default_factory=dict)
    _encoded: list[tuple[torch.Tensor, dict[str, str], NDArray[np.bool_] | None]] = field(default_factory=list)

    def open(self, request: str, positions: int) -> None:
        """Prepare to record at most `positions` positions of `request` (the engine's own id)."""
        if self.layers:
            self._choices[request] = np.full((positions, self.layers, self.experts_per_token), -1, np.int16)

    def close(self, request: str, positions: int) -> NDArray[np.int16] | None:
        """Return the choices int16 [positions, L, K] of a finished request, or None for a model that has no experts or
        whose choices are not recorded."""
        choices = self._choices.pop(request, None)
        if choices is None:
            return None
        assert (choices[:positions] >= 0).all(), "a position was never computed"
        return choices[:positions].copy()

    def discard(self, request: str) -> None:
        """Forget a request that was taken back."""
        self._choices.pop(request, None)

    def digests(self, content_hash: str) -> dict[str, str]:
        """Return the digests of the tensors that the model received for the media item of this hash."""
        return self._digests[content_hash]

    def kept(self, content_hash: str) -> NDArray[np.bool_] | None:
        """Return which tokens the model kept of the pruned video of this hash, bool [tubelets, tokens each], or None
        for any other media item."""
        return self._kept[content_hash]

    def forget_evicted(self, needed: Iterable[str]) -> None:
        """Drop what is known of media items that are neither in the encoder cache nor `needed` by a request under
        way."""
        kept = self.runner.encoder_cache.keys() | set(needed)
        self._digests = {key: digests for key, digests in self._digests.items() if key in kept}
        self._kept = {key: mask for key, mask in self._kept.items() if key in kept}

    def chosen(self, layer: int, topk_ids: torch.Tensor) -> None:
        """Take the experts that the router of MoE layer `layer` chose, int [R, K]; the router calls this."""
        self._step[layer] = topk_ids

    def received(
        self, batch: Mapping[str, Any], features: tuple[torch.Tensor, ...], kept: Sequence[torch.Tensor] = ()
    ) -> None:
        """Take a batch of media items of one modality, which the model received, and their features; the model calls
        this after it encoded them.

        `kept` has for each video, if they were pruned, bool [tubelets, tokens each]: which of its tokens the model
        kept.
        """
        masks = [mask.cpu().numpy() for mask in kept] if kept else [None] * len(features)
        for item, feature, mask in zip(split_items(batch, len(features)), features, masks, strict=True):
            self._encoded.append((feature, {name: tensor_digest(tensor) for name, tensor in item.items()}, mask))

    def finish_step(self, positions: torch.Tensor) -> None:
        """Store what was recorded in the step; called at the end of the model's forward pass. `positions` is int64 [R],
        with padding after the last row."""
        self._name_encoded()
        if not self._step:
            return
        rows = torch.stack([self._step[layer] for layer in range(self.layers)], dim=1)
        choices = rows.sort(dim=-1).values.to(torch.int16).cpu().numpy()
        where = positions.cpu().numpy()
        self._step.clear()
        starts = self.runner.query_start_loc.np
        for index, request in enumerate(self.runner.input_batch.req_ids):
            kept = self._choices.get(request)
            if kept is not None:
                span = slice(starts[index], starts[index + 1])
                kept[where[span]] = choices[span]

    def _name_encoded(self) -> None:
        """Find the cache key of each media item that was just encoded: its features are the very tensor in the runner's
        cache."""
        if not self._encoded:
            return
        keys = {id(feature): key for key, feature in self.runner.encoder_cache.items()}
        for feature, digests, mask in self._encoded:
            key = keys[id(feature)]
            self._digests[key], self._kept[key] = digests, mask
        self._encoded.clear()


def attach(runner: Any, model: Any, record_experts: bool) -> StepRecorder:
    """Make `model`, run by vLLM's `runner`, report to a new recorder, and return the recorder.

    A model with media encoders tells its `recorder` what they received; everything else is observed from outside.
    """
    routers = [module.router for module in model.modules() if isinstance(module, MoERunner)] if record_experts else []
    recorder = StepRecorder(runner, len(routers), routers[0].top_k if routers else 0)
    for layer, router in enumerate(routers):
        router.set_capture_fn(partial(recorder.chosen, layer))
    encode = runner._execute_mm_encoder

    def encode_padded_alone(scheduler_output: Any) -> list[torch.Tensor]:
        features = []
        for part in split_off_padded(scheduler_output.scheduled_encoder_inputs, runner.requests):
            features += encode(replace(scheduler_output, scheduled_encoder_inputs=part))
        return features

    runner._execute_mm_encoder = encode_padded_alone
    model.recorder = recorder

    def finish(module: Any, given: Any, named: Mapping[str, Any], output: Any) -> None:
        recorder.finish_step(named["positions"])

    model.register_forward_hook(finish, with_kwargs=True)
    return recorder


def split_off_padded(scheduled: Mapping[str, list[int]], requests: Mapping[str, Any]) -> list[dict[str, list[int]]]:
    """Split media items to encode, {request: item numbers}: images together, then each sound and each video by itself.

    vLLM pads the sounds of a batch to the longest and its videos to the largest one: a sound's features would depend on
    the batch, and a video would be seen with black borders, its features at the wrong places.
    """
    images: dict[str, list[int]] = {}
    alone: list[dict[str, list[int]]] = []
    for request, items in scheduled.items():
        for item in items:
            if requests[request].mm_features[item].modality == "image":
                images.setdefault(request, []).append(item)
            else:
                alone.append({request: [item]})
    return ([images] if images else []) + alone
