"""Assembles the training copy of Nemotron Omni: towers, projectors and language model under one root.

Shapes: B samples of up to L tokens; T packed tokens; N scored positions; n images; N features.
"""

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from omni_rl.errors import ConfigError, MediaError
from omni_rl.models.nemotron_omni import features, plain_inputs, scoring
from omni_rl.models.nemotron_omni.backend import BackendConfig
from omni_rl.models.nemotron_omni.causal_output import causal_output
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.nemotron_omni.grad_sync import MoEFSDPSyncMixin
from omni_rl.models.nemotron_omni.hf_checkpointing import HFCheckpointingMixin
from omni_rl.models.nemotron_omni.layers import RMSNorm, SquaredReLU
from omni_rl.models.nemotron_omni.packed_rows import RowPacking
from omni_rl.models.nemotron_omni.parts import _ModelProxy, refuse_unknown
from omni_rl.models.nemotron_omni.projectors import SoundProjection, VisionProjector
from omni_rl.models.packed import PackedMedia, PackedScores, PackedSequences

__all__ = [
    "BackendConfig",
    "ModelClass",
    "NemotronOmniConfig",
    "NemotronOmniForConditionalGeneration",
    "RMSNorm",
    "SoundProjection",
    "SquaredReLU",
    "VisionProjector",
    "_ModelProxy",
    "logger",
]

logger = logging.getLogger(__name__)


class NemotronOmniForConditionalGeneration(HFCheckpointingMixin, MoEFSDPSyncMixin):
    """Nemotron Omni for training: differentiable scores of token sequences with images, sounds and videos.

    Use `score_packed` for sequences whose media spans are known; `forward` takes padded batches.
    """

    @overload
    def extract_feature(self, pixel_values: torch.Tensor) -> torch.Tensor: ...

    @overload
    def extract_feature(self, pixel_values: list[torch.Tensor]) -> list[torch.Tensor]: ...

    def extract_feature(self, pixel_values: plain_inputs.Pixels) -> torch.Tensor | list[torch.Tensor]:
        """Return [n, N, llm_hidden] of tiles [n, C, H, W] of one size; for a list, whose sizes differ, a list of the
        same."""
        if isinstance(pixel_values, torch.Tensor):
            return features.tile_embeddings(self, pixel_values)
        if not pixel_values:
            raise MediaError("pixel_values is an empty list; leave it out")
        return [features.tile_embeddings(self, t if t.ndim == 4 else t.unsqueeze(0)) for t in pixel_values]

    def extract_feature_dynamic(
        self, pixel_values: plain_inputs.Pixels, imgs_sizes: torch.Tensor | list[tuple[int, int]]
    ) -> torch.Tensor:
        """Return [1, N of all, llm_hidden] of images of their own sizes (h, w) in a padded batch [n, C, H, W], or a
        list.

        Raises `MediaError` (a ValueError) that names the image whose size is missing, too large or no multiple of the
        patch.
        """
        images = features.image_embeddings(self, plain_inputs.crop(pixel_values, imgs_sizes))
        return torch.cat(images).unsqueeze(0)

    def extract_video_feature(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        """Return [ceil(F / T), N, llm_hidden] of one video [F, C, H, W], T frames a tubelet."""
        return features.video_embeddings(self, pixel_values_videos)

    def extract_sound_feature(
        self, input_features: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return [c, N, llm_hidden] of mel clips [c, frames, bins]; rows past a clip's own length are padding."""
        return features.padded_sound_embeddings(self, input_features, attention_mask)[0]

    def prepare_model_inputs_for_cp(
        self,
        input_ids: torch.Tensor | Mapping[str, Any],
        pixel_values: plain_inputs.Pixels | None = None,
        image_flags: torch.Tensor | None = None,
        imgs_sizes: plain_inputs.Sizes | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        sound_features: torch.Tensor | None = None,
        sound_attention_mask: torch.Tensor | None = None,
        *,
        num_chunks: int = 1,
    ) -> dict[str, torch.Tensor]:
        """Return `inputs_embeds` [B, L, hidden] of whole sequences with their media, to be sharded by context
        afterwards.

        `input_ids` may be a whole batch, a mapping that holds the other arguments too, as newer callers give it; what
        else is in it is left to them. They also say into how many parts they will cut it, `num_chunks`, which changes
        nothing here.
        """
        if isinstance(input_ids, Mapping):
            names = inspect.signature(self.prepare_inputs_embeds_for_cp).parameters
            return self.prepare_model_inputs_for_cp(**{name: input_ids[name] for name in names if name in input_ids})
        embeds = plain_inputs.merge(
            self,
            input_ids,
            pixel_values=pixel_values,
            image_flags=image_flags,
            imgs_sizes=imgs_sizes,
            pixel_values_videos=pixel_values_videos,
            sound_features=sound_features,
            sound_attention_mask=sound_attention_mask,
        )
        return {"inputs_embeds": embeds}

    def prepare_inputs_embeds_for_cp(
        self,
        input_ids: torch.Tensor,
        pixel_values: plain_inputs.Pixels | None = None,
        image_flags: torch.Tensor | None = None,
        imgs_sizes: plain_inputs.Sizes | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        sound_features: torch.Tensor | None = None,
        sound_attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return what `prepare_model_inputs_for_cp` returns under `inputs_embeds`."""
        return self.prepare_model_inputs_for_cp(
            input_ids,
            pixel_values,
            image_flags,
            imgs_sizes,
            pixel_values_videos,
            sound_features,
            sound_attention_mask,
        )["inputs_embeds"]

    def forward(
        self,
        pixel_values: plain_inputs.Pixels | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        image_flags: torch.Tensor | None = None,
        imgs_sizes: plain_inputs.Sizes | None = None,
        past_key_values: list[torch.Tensor] | None = None,
        labels: torch.Tensor | None = None,
        sound_features: torch.Tensor | None = None,
        sound_attention_mask: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        _pre_embed_only: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...] | dict[str, torch.Tensor]:
        """Return loss, logits and, if asked for, the final hidden states of a batch `input_ids` [B, L] padded on the
        right.

        Media are given by the plain arguments, whose features go to their placeholder ids, or by `media` (a sequence of
        `PackedMedia` with positions in the flattened batch, B·L), which knows its spans. `inputs_embeds` [B, L, hidden]
        skips both. `_pre_embed_only` returns what `prepare_model_inputs_for_cp` returns. Rows may hold several
        sequences (see `RowPacking`): `position_ids` that restart, a mask of 1, 2, ..., `cu_seqlens` or `seq_idx` tell
        them apart. Positions mean nothing else, for there is no rotary embedding, and `use_cache` has no effect. See
        `causal_output` for the other arguments, `num_items_in_batch` among them.
        """
        media: Sequence[PackedMedia] = kwargs.pop("media", ())
        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        packing = RowPacking.taken_from(kwargs, position_ids)
        refuse_unknown(kwargs)
        if past_key_values is not None or output_attentions:
            raise ConfigError("the training copy has no cache and keeps no attention weights; leave both out")
        if inputs_embeds is None:
            if input_ids is None:
                raise ConfigError("forward needs input_ids or inputs_embeds")
            inputs_embeds = plain_inputs.merge(
                self,
                input_ids,
                pixel_values=pixel_values,
                image_flags=image_flags,
                imgs_sizes=imgs_sizes,
                pixel_values_videos=pixel_values_videos,
                sound_features=sound_features,
                sound_attention_mask=sound_attention_mask,
                media=media,
            )
        if _pre_embed_only:
            return {"inputs_embeds": inputs_embeds}
        if output_hidden_states is None:
            output_hidden_states = bool(self.config.llm_config.output_hidden_states)
        output = causal_output(
            self.language_model,
            inputs_embeds,
            attention_mask,
            labels,
            logits_to_keep,
            output_hidden_states,
            self.backend.logprob_chunk,
            packing,
            num_items_in_batch,
        )
        return output.to_tuple() if return_dict is False else output

    def embed_packed(self, ids: torch.Tensor, media: Sequence[PackedMedia]) -> torch.Tensor:
        """Return embeddings [T, hidden] of packed `ids` int64 [T], with every media item's features in its places."""
        return scoring.embed(self, ids, media)[0]

    def score_packed(
        self,
        batch: PackedSequences,
        *,
        temperature: float | torch.Tensor = 1.0,
        logprob_chunk: int | None = None,
        record_routing: bool = True,
    ) -> PackedScores:
        """Return differentiable logprobs of the tokens under `batch.score_mask`, media included, in one call.

        `temperature` divides the float32 logits: a number, or float32 [N] for the N scored tokens. `logprob_chunk`
        positions have their logits in memory at once. Raises `PromptError` where media and placeholders differ.
        """
        return scoring.score(self, batch, temperature, logprob_chunk or self.backend.logprob_chunk, record_routing)


ModelClass = NemotronOmniForConditionalGeneration
