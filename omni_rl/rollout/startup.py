"""Starts vLLM with every choice that could move a logprob made explicitly."""

import gc
from dataclasses import replace
from typing import Any

import torch
from vllm import EngineArgs
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.v1.engine.llm_engine import LLMEngine

from omni_rl import numba_beside_vllm, runtime, vllm_engine
from omni_rl.media.slots import FeatureCounts
from omni_rl.models.families import family_of
from omni_rl.rollout import registration
from omni_rl.rollout.plain_weights import LOAD_FORMAT
from omni_rl.rollout.settings import EngineSettings, require_checkpoint, require_vllm
from omni_rl.rollout.worker import EXTENSION


class ServeIn:
    """Sets the dtype in a checkpoint's config to the one that it is served in, because vLLM casts pixels to the
    config's dtype.

    vLLM calls it on the top-level config and, while it reads a checkpoint, on a bare text config as well.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, config: Any) -> Any:
        config.dtype = config.get_text_config().dtype = self.dtype
        return config


def start(settings: EngineSettings) -> LLMEngine:
    """Start vLLM's engine in this process and return it.

    Raises:
        ConfigError: the engine was not proven with this vLLM, this process lacks the environment it computes in, or no
            family serves the checkpoint.
        CheckpointError: `settings.model` is not a whole checkpoint.
    """
    require_vllm()
    runtime.require("the engine")
    require_checkpoint(settings.model)
    family_of(settings.model).training.check_checkpoint(settings.model)
    numba_beside_vllm.hide()
    torch.set_num_threads(settings.threads)
    with vllm_engine.asked():
        # vLLM loads its plug-ins once in a process: it may have done so before anybody asked.
        registration.register()
        registration.load_class(settings.model)
        # vLLM collects garbage five times as it starts, and freezes what is left. What is imported by now stays:
        # frozen before, it is not walked over each time, which takes three quarters of a start on a CPU.
        gc.freeze()
        return LLMEngine.from_engine_args(_engine_args(settings))


def _engine_args(settings: EngineSettings) -> EngineArgs:
    return EngineArgs(
        model=str(settings.model),
        dtype=settings.dtype,
        hf_overrides=ServeIn(getattr(torch, settings.dtype)),
        load_format=LOAD_FORMAT,
        # Sampling defaults come from the caller, never out of the checkpoint.
        generation_config="vllm",
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        kv_cache_memory_bytes=settings.kv_cache_memory_bytes,
        limit_mm_per_prompt={"image": settings.images, "audio": settings.audios, "video": settings.videos},
        video_pruning_rate=settings.video_pruning_rate or None,
        logprobs_mode="processed_logprobs",
        enforce_eager=True,
        # Prefix caching crashes with Mamba on CPU at the first prompt longer than a block.
        enable_prefix_caching=False,
        # The trainer needs the tensors of every rendering; a cache would leave out those that the engine has.
        mm_processor_cache_gb=0,
        skip_mm_profiling=True,
        # A step is finished before the next is planned: an update between two steps has a clear before and after.
        async_scheduling=False,
        disable_log_stats=True,
        worker_extension_cls=EXTENSION,
        weight_transfer_config=settings.weight_transfer and WeightTransferConfig(backend=settings.weight_transfer),
    )


def feature_counts(engine: LLMEngine, settings: EngineSettings) -> FeatureCounts:
    """Return how many features the engine makes of media, and which media it takes."""
    counts = family_of(settings.model).training.feature_counts(engine.model_config.hf_config)
    return replace(counts, pruning_rate=settings.video_pruning_rate, pixels=getattr(torch, settings.dtype))


def model_runner(engine: LLMEngine) -> Any:
    """Return vLLM's model runner, which knows which row of a step belongs to which request."""
    (runner,) = engine.collective_rpc(lambda worker: worker.model_runner)
    return runner
