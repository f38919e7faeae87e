"""Turns a prompt into ids, spans and tensors once, by vLLM's own processor; engine and trainer both use the result.

Shapes: P prompt tokens after expansion, N tokens of one media item.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from vllm.exceptions import VLLMValidationError
from vllm.utils.torch_utils import set_default_torch_num_threads

from omni_rl import runtime
from omni_rl.errors import CheckpointError, MediaError, PromptError
from omni_rl.kinds import Modality
from omni_rl.media.digests import tensor_digest, tensors_digest
from omni_rl.media.engine_input import plain_tensors
from omni_rl.media.formats import FORMATS, in_order, model_text
from omni_rl.media.prompts import named, plain
from omni_rl.media.pruning import Pruning
from omni_rl.media.sounds import MODEL_RATE
from omni_rl.media.types import MediaItem, Prompt, RenderedPrompt, Sound


class Renderer:
    """Renders prompts with the processor of one engine, whose checkpoint, dtype and context length it shares. If the
    engine's model has no towers for media, there is no processor, and only text is rendered.

    `engine` is vLLM's `LLMEngine` in this process. No cache of vLLM's takes part: with one, an item's tensors could
    depend on what was rendered before it (the images of a prompt share a token budget, its sounds a padding).

    Raises `ConfigError` if the process lacks the environment in which an item has the same bits everywhere
    (`omni_rl.runtime`), and `CheckpointError` for a checkpoint without dynamic resolution.
    """

    def __init__(self, engine: Any) -> None:
        runtime.require("the renderer")
        self._renderer = engine.renderer
        self.max_prompt_tokens = int(self._renderer.model_config.max_model_len) - 1  # room for one sampled token
        self._limits: dict[str, int] = {}
        if self._renderer.model_config.is_multimodal_model:
            self._use_processor()

    def _use_processor(self) -> None:
        self._processor = self._renderer.get_mm_processor()
        info = self._processor.info
        hf_processor = info.get_hf_processor()
        if hf_processor.dynamic_tiler is None:
            raise CheckpointError("vision_config.args has no min_num_patches: only dynamic resolution is supported")
        self._limits = info.allowed_mm_limits
        self._tiler = hf_processor.dynamic_tiler
        self._extractor = hf_processor.audio_extractor
        self._checks: Mapping[Modality, Callable[[Any], None]] = {
            "image": self._check_image,
            "audio": self._check_sound,
        }
        self._image_token = int(hf_processor.image_token_id)
        self._hf_processor = hf_processor
        self._pruning_rate = float(info.get_video_pruning_rate() or 0)

    def render(self, prompts: Sequence[Prompt]) -> list[RenderedPrompt]:
        """Render each prompt, in order. The same prompt gives the same ids, tensors and digests every time.

        Raises `PromptError` (placeholders and media do not match, prompt too long) or `MediaError` (an item is empty,
        unreadable, too long or too elongated); both name the prompt and the item.
        """
        return [self._render(prompt) for prompt in prompts]

    def _render(self, prompt: Prompt) -> RenderedPrompt:
        self._check_limits(prompt)
        shown = plain(prompt)
        media = self._media(shown)
        try:
            parameters = self._renderer.default_cmpl_tok_params
            ids = self._renderer.tokenize_prompt({"prompt": model_text(shown)}, parameters)["prompt_token_ids"]
        except VLLMValidationError as error:
            raise PromptError(f"prompt {prompt.id!r}: {error}") from error
        if not ids:
            raise PromptError(f"prompt {prompt.id!r} is empty")
        items: list[MediaItem] = []
        if media:
            out = self._process(prompt.id, ids, media)
            ids = out["prompt_token_ids"]
            for modality, spans in out["mm_placeholders"].items():
                for index, (span, kwargs) in enumerate(zip(spans, out["mm_kwargs"][modality], strict=True)):
                    items.append(self._item(prompt.id, modality, index, span, kwargs, ids))
        if len(ids) > self.max_prompt_tokens:
            raise PromptError(
                f"prompt {prompt.id!r} has {len(ids)} tokens with its media expanded; at most {self.max_prompt_tokens} "
                "fit. Shorten it, give fewer or smaller media, or raise max_model_len"
            )
        return RenderedPrompt(
            id=prompt.id,
            kind=prompt.kind,
            ids=np.array(ids, np.int64),
            items=tuple(sorted(items, key=lambda item: item.offset)),
            answer=prompt.answer,
            text=prompt.text,
        )

    def _process(self, prompt_id: str, ids: list[int], media: dict[Modality, list[Any]]) -> Any:
        """Run vLLM's processor on one prompt, as the engine's front end does, but without its cache."""
        # Names in place of vLLM's hashes, which nothing here reads: ours are of the tensors, not of the raw media.
        names = {modality: [str(i) for i in range(len(items))] for modality, items in media.items()}
        with set_default_torch_num_threads(), warnings.catch_warnings():
            # Pillow's pixels are read-only, and vLLM only reads them.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            try:
                return self._processor(ids, self._processor.info.parse_mm_data(media), names)
            except (ValueError, RuntimeError, ArithmeticError) as error:
                # vLLM's own message shows all the data; what it was raised from says what is wrong with it.
                reason = error.__cause__ or error
                raise MediaError(f"prompt {prompt_id!r}: vLLM's processor refused its media: {reason}") from error

    def _item(
        self, prompt_id: str, modality: Modality, index: int, span: Any, kwargs: Any, ids: list[int]
    ) -> MediaItem:
        within = np.array(ids[span.offset : span.offset + span.length])
        # Images and videos fill the same token; a video's separators are text between its frames.
        takes_feature = within == self._image_token if modality == "video" else span.is_embed.numpy()
        tensors = plain_tensors(kwargs)
        if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
            raise MediaError(f"prompt {prompt_id!r}, {modality} {index}: its values are too large; scale them down")
        return MediaItem(
            modality=modality,
            index=index,
            offset=span.offset,
            length=span.length,
            positions=span.offset + np.flatnonzero(takes_feature).astype(np.int64),
            tensors=tensors,
            digests={name: tensor_digest(tensor) for name, tensor in tensors.items()},
            content_hash=tensors_digest(tensors),
            pruning=self._pruning(tensors) if modality == "video" and self._pruning_rate else None,
        )

    def _pruning(self, tensors: dict[str, torch.Tensor]) -> Pruning:
        """Return where a pruned video's features go among its text, from vLLM's own text with one slot for each
        tubelet."""
        processor = self._hf_processor
        temporal = processor.video_temporal_patch_size
        tubelets = -(-int(tensors["video_num_patches"]) // temporal)
        one_each = processor.get_video_repl(
            tokens_per_frame=[1] * tubelets,
            frames_indices=tensors["frames_indices"].tolist(),
            frame_duration_ms=int(tensors["frame_duration_ms"]),
            tokenizer=processor.tokenizer,
            img_start_token_ids=processor._img_start_token_ids,
            img_end_token_ids=processor._img_end_token_ids,
            img_context_token_ids=processor._img_context_token_ids,
            video_temporal_patch_size=temporal,
        ).full
        slots = np.flatnonzero(np.array(one_each) == self._image_token)
        return Pruning(self._pruning_rate, slots.astype(np.int64) - np.arange(tubelets))

    def _check_limits(self, prompt: Prompt) -> None:
        counts = Counter(FORMATS[kind].modality for kind, items in prompt.media.items() for _ in items)
        for modality, count in counts.items():
            if count > self._limits.get(modality, 0):
                raise PromptError(
                    f"prompt {prompt.id!r} has {count} {modality} item(s); the engine takes at most "
                    f"{self._limits.get(modality, 0)} (limit_mm_per_prompt)"
                )

    def _media(self, prompt: Prompt) -> dict[Modality, list[Any]]:
        """Return a plain prompt's media as vLLM takes them; modalities that are absent are left out."""
        media: dict[Modality, list[Any]] = {}
        for kind, number, item in in_order(prompt):
            known = FORMATS[kind]
            with named(prompt.id, kind, number):
                if known.modality in self._checks:
                    self._checks[known.modality](item)
            media.setdefault(known.modality, []).append(known.given(item))
        return media

    def _check_image(self, picture: Any) -> None:
        try:
            self._tiler.compute_params([picture], self._tiler.max_num_tokens_available(0))
        except ZeroDivisionError:
            raise MediaError(
                f"{picture.width} x {picture.height} pixels are too elongated: the image would be scaled down to less "
                "than one patch in height or width; crop it"
            ) from None

    def _check_sound(self, sound: Sound) -> None:
        tokens = self._extractor.audio_token_count(len(sound.samples))
        if tokens > self.max_prompt_tokens:
            raise MediaError(
                f"the sound lasts {len(sound.samples) / MODEL_RATE:.1f} s, which is {tokens} tokens; the context holds "
                f"{self.max_prompt_tokens}"
            )
