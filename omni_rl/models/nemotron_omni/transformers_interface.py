"""Provides what transformers, PEFT and parallelisers ask of a model, beside its forward."""

from typing import Any

import torch
from torch import nn
from transformers import RadioModel

from omni_rl.errors import ConfigError
from omni_rl.models.nemotron_omni.language.model import NemotronHForCausalLM
from omni_rl.models.nemotron_omni.recomputing import set_recomputed
from omni_rl.models.nemotron_omni.sound import SoundEncoder


class TransformersInterface:
    """Gives access to embeddings, head and gradient checkpointing, and has the attributes that other libraries look
    for."""

    language_model: NemotronHForCausalLM
    vision_model: RadioModel
    sound_encoder: SoundEncoder | None

    base_model_prefix = "language_model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    # transformers' Trainer passes `num_items_in_batch` to a model that has this attribute.
    accepts_loss_kwargs = True

    @property
    def dtype(self) -> torch.dtype:
        """The embeddings' dtype."""
        return self.language_model.model.embed_tokens.weight.dtype

    @property
    def device(self) -> torch.device:
        """The embeddings' device."""
        return self.language_model.model.embed_tokens.weight.device

    @property
    def lm_head(self) -> nn.Module:
        """The language model's head, which is in the state dict once, under its own name."""
        head: nn.Module = self.language_model.lm_head
        return head

    def get_input_embeddings(self) -> nn.Module:
        """Return the language model's input embeddings."""
        return self.language_model.model.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the language model's input embeddings."""
        self.language_model.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        """Return the language model's head."""
        return self.language_model.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the language model's head."""
        self.language_model.lm_head = new_embeddings

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, **kwargs: Any) -> dict[str, Any]:
        """Return `forward`'s arguments for whole sequences, as there is no cache; PEFT asks for it of every causal
        model."""
        return {"input_ids": input_ids, **kwargs}

    def gradient_checkpointing_enable(
        self,
        gradient_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Recompute each block, and each layer of both towers, in backward instead of storing what is in it.

        With `every_n_layers`, only each n-th layer of a stack is recomputed. `gradient_checkpointing_kwargs` change
        nothing: the recomputation is torch's that is not reentrant. Raises `ConfigError` for `offload`.
        """
        if offload:
            raise ConfigError("activations are not moved to the host; leave offload out")
        if every_n_layers < 1:
            raise ConfigError(f"every_n_layers is {every_n_layers}; use 1 or more")
        for stack in self._stacks():
            set_recomputed(stack, every_n_layers)

    def gradient_checkpointing_disable(self) -> None:
        """Undo `gradient_checkpointing_enable`."""
        for stack in self._stacks():
            set_recomputed(stack, None)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether `gradient_checkpointing_enable` is in force."""
        return any(layer.recomputed for stack in self._stacks() for layer in stack)

    def _stacks(self) -> list[nn.ModuleList]:
        stacks = [self.language_model.model.layers, self.vision_model.encoder.layer]
        return stacks if self.sound_encoder is None else [*stacks, self.sound_encoder.layers]
