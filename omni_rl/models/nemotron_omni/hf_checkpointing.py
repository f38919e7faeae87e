"""Loads and saves a model by the names and keywords that transformers' users write."""

from pathlib import Path
from typing import Any, Self

import torch

from omni_rl.files.reading import read_whole
from omni_rl.models import storage
from omni_rl.models.nemotron_omni import checkpoint, placement, shards
from omni_rl.models.nemotron_omni.backend import BackendConfig
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.nemotron_omni.initial import initialise
from omni_rl.models.nemotron_omni.keywords import Loading
from omni_rl.models.nemotron_omni.parts import NemotronOmniParts
from omni_rl.sync.released import Released


class HFCheckpointingMixin(NemotronOmniParts):
    """Gives a model random weights or weights of a directory, and writes a directory of the weights."""

    @classmethod
    def from_config(
        cls,
        config: NemotronOmniConfig,
        backend: BackendConfig | None = None,
        **kwargs: Any,
    ) -> Self:
        """Return a model with random weights (torch's global generator) in the configuration's dtype, float32 if it has
        none."""
        with torch.device("meta"):  # built without weights, so that the generator is used for the final ones only
            model = cls(config, backend, **kwargs)
        model.initialize_weights(dtype=checkpoint.parse_dtype(None, config))
        model.companions = checkpoint.companions_of(config)
        return model

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *model_args: Any,
        **kwargs: Any,
    ) -> Self:
        """Load a local checkpoint directory in released names, safetensors only; code in it is never run.

        `dtype` or `torch_dtype` (a torch dtype or its name; default: the checkpoint's, of its language model where the
        whole has none) is the dtype of the parameters; A_log and the router's bias stay float32. `device` or
        `device_map` defaults to the CPU; on "meta" the model has no weights yet. `config` takes the place of
        config.json. See `keywords.Loading` for what else transformers' users write.

        Raises `CheckpointError` that lists every missing, unexpected or misshapen tensor, and `ConfigError` for a
        keyword that is not supported.
        """
        directory = Path(pretrained_model_name_or_path)
        loading = Loading.taken_from(kwargs)
        return read_whole(directory, lambda: checkpoint.load(cls, directory, loading, *model_args, **kwargs))

    def save_pretrained(
        self,
        directory: str | Path,
        dtype: torch.dtype | None = None,
        max_shard_size: int | str = storage.SHARD_SIZE,
    ) -> None:
        """Write a directory that vLLM serves unchanged, in `dtype` (default: the embeddings').

        The directory appears whole, or takes an existing one's place at once; older weights do not stay, other files
        do. What the model was loaded with (tokenizer, generation and processor configurations, remote code, the
        spelling of config.json) comes along, so save a changed tokenizer afterwards. Ranks of a sharded model call it
        together, and each writes its own slices. Weights of more than `max_shard_size` (bytes, or a text such as "5GB")
        lie in several files with an index.

        Raises `CheckpointError`, and leaves `directory` as it was, if the model cannot be saved: on a full disk, or
        while adapters are in the model, whose names nothing would load.
        """
        embeddings = self.language_model.model.embed_tokens.weight
        checkpoint.save(
            self, Path(directory), embeddings.dtype if dtype is None else dtype, storage.parse_size(max_shard_size)
        )

    def released_tensors(self) -> list[Released]:
        """Every weight under its released name, in the model's dtypes; the same list on every rank."""
        return shards.released_tensors(self)

    def write_beside(self, directory: Path, dtype: torch.dtype) -> None:
        """Write config.json and what the model was loaded with, for weights that are served in `dtype`."""
        checkpoint.write_beside(directory, self.config, self.companions, dtype)

    def initialize_weights(
        self,
        buffer_device: torch.device | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        """Fill all weights at random, in `dtype`; a model on the meta device moves to `buffer_device` (or the CPU)."""
        if any(parameter.is_meta for parameter in self.parameters()):
            placement.materialise(self, buffer_device or torch.device("cpu"))
        self.float()
        initialise(self)
        self.to(dtype)
