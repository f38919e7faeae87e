"""How a model begins and is saved, by the names and keywords that transformers' users write."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from omni_rl.files.reading import read_whole
from omni_rl.models import storage
from omni_rl.models.nemotron_omni import checkpoint, placement
from omni_rl.models.nemotron_omni.backend import BackendConfig
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.nemotron_omni.initial import initialise
from omni_rl.models.nemotron_omni.keywords import Loading

if TYPE_CHECKING:
    from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration


class HFCheckpointingMixin:
    """Random weights, weights of a directory, and a directory of the weights."""

    @classmethod
    def from_config(  # type: ignore[misc]
        cls: "type[NemotronOmniForConditionalGeneration]",
        config: NemotronOmniConfig,
        backend: BackendConfig | None = None,
        **kwargs: Any,
    ) -> "NemotronOmniForConditionalGeneration":
        """Random weights (torch's global generator) in the configuration's dtype, float32 if it has none."""
        with torch.device("meta"):  # built without weights, so that the generator is used for the final ones only
            model = cls(config, backend, **kwargs)
        model.initialize_weights(dtype=checkpoint.parse_dtype(None, config))
        model.companions = checkpoint.companions_of(config)
        return model

    @classmethod
    def from_pretrained(  # type: ignore[misc]
        cls: "type[NemotronOmniForConditionalGeneration]",
        pretrained_model_name_or_path: str | Path,
        *model_args: Any,
        **kwargs: Any,
    ) -> "NemotronOmniForConditionalGeneration":
        """Load a local checkpoint directory in released names, safetensors only; code in it is never run.

        `dtype` or `torch_dtype` (a torch dtype or its name; default: the checkpoint's, of its language model where the
        whole has none) is the dtype of the parameters; A_log and the router's bias stay float32. `device` or
        `device_map` defaults to the CPU; on "meta" the model has no weights yet. `config` takes the place of
        config.json. See `keywords.Loading` for what else transformers' users write.

        Raises `CheckpointError` that lists every missing, unexpected or misshapen tensor, and `ConfigError` for a
        keyword that cannot be had.
        """
        directory = Path(pretrained_model_name_or_path)
        loading = Loading.taken_from(kwargs)
        return read_whole(directory, lambda: checkpoint.load(cls, directory, loading, *model_args, **kwargs))

    def save_pretrained(  # type: ignore[misc]
        self: "NemotronOmniForConditionalGeneration",
        directory: str | Path,
        dtype: torch.dtype | None = None,
        max_shard_size: int | str = storage.SHARD_SIZE,
    ) -> None:
        """Write a directory that vLLM serves unchanged, in `dtype` (default: the embeddings').

        It appears whole, or takes an existing one's place at once; older weights do not stay, other files do. What the
        model was loaded with (tokenizer, generation and processor configurations, remote code, the spelling of
        config.json) comes along, so save a changed tokenizer afterwards. Ranks of a sharded model call it together,
        and each writes its own slices. Weights of more than `max_shard_size` (bytes, or a text such as "5GB") lie in
        several files with an index.

        Raises `CheckpointError`, and leaves `directory` as it was, if that cannot be had: on a full disk, or while
        adapters are in the model, whose names nothing would load.
        """
        embeddings = self.language_model.model.embed_tokens.weight
        checkpoint.save(
            self, Path(directory), embeddings.dtype if dtype is None else dtype, storage.parse_size(max_shard_size)
        )

    def initialize_weights(  # type: ignore[misc]
        self: "NemotronOmniForConditionalGeneration",
        buffer_device: torch.device | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        """Fill all weights at random, in `dtype`; a model on the meta device moves to `buffer_device` (or the CPU)."""
        if any(parameter.is_meta for parameter in self.parameters()):
            placement.materialise(self, buffer_device or torch.device("cpu"))
        self.float()
        initialise(self)
        self.to(dtype)
