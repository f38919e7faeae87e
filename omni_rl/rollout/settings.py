"""Defines how a rollout engine is set up; importable without torch."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from omni_rl.errors import CheckpointError, ConfigError
from omni_rl.settings import StrictSettings, TransferBackend
from omni_rl.vllm_engine import unsupported

Dtype = Literal["float32", "bfloat16"]


class EngineSettings(StrictSettings):
    """The settings of one engine. Nothing that could move a logprob is left to the defaults of the checkpoint or of
    vLLM.

    `max_model_len` counts prompt and answer; one position of it stays free, because rescoring has to prefill the whole
    sequence and vLLM refuses a prompt that fills its context. `images`, `audios` and `videos` are limits per prompt.
    `run` is the run in the version of the weights that the engine starts with. `threads` should be the same for all
    replicas and the trainer's ranks: the last bits of float32 depend on it. `video_pruning_rate` is the share of a
    video's tokens that engine and trainer leave out (EVS, efficient video sampling); 0 leaves out none. `resources`, by
    Ray's names, are set aside for the engine beside its share of a CPU. With `batch_invariant`, on CPU in bfloat16,
    prefill has the bits of decode, whatever else is in a batch, and is slower (docs/numerics.md). `weight_transfer` is
    the backend of vLLM's own weight transfer that is to reach the engine, None if none is.
    """

    model: Path
    dtype: Dtype = "float32"
    run: str = "run"
    max_model_len: int = Field(default=2048, ge=16)
    max_num_seqs: int = Field(default=16, ge=1)
    max_num_batched_tokens: int = Field(default=2048, ge=16)
    kv_cache_memory_bytes: int = Field(default=2**28, ge=2**20)
    images: int = Field(default=4, ge=0)
    audios: int = Field(default=2, ge=0)
    videos: int = Field(default=2, ge=0)
    video_pruning_rate: float = Field(default=0.0, ge=0, lt=1)
    record_experts: bool = True
    batch_invariant: bool = False
    weight_transfer: TransferBackend | None = None
    threads: int = Field(default=1, ge=1)
    resources: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _invariant_in_bfloat16(self) -> "EngineSettings":
        if self.batch_invariant and self.dtype != "bfloat16":
            raise ValueError("batch_invariant is for dtype bfloat16: in float32 prefill and decode still differ")
        return self


def require_checkpoint(model: Path) -> None:
    """Raise `CheckpointError` unless `model` is a directory with what vLLM needs to serve it, before anything heavy is
    loaded."""
    from omni_rl.files.weights import weight_files  # safetensors is not there where settings are only read

    for name in ("config.json", "tokenizer.json"):
        if not (model / name).is_file():
            raise CheckpointError(f"{model} has no {name}; give the directory of a saved checkpoint")
    weight_files(model)


def require_vllm() -> None:
    """Raise `ConfigError` if the engine was not proven with the installed vLLM.

    The check imports vLLM, but none of its internals, which other versions may not have.
    """
    from vllm import __version__

    reason = unsupported(__version__)
    if reason:
        raise ConfigError(f"{reason}; install a version of those")
