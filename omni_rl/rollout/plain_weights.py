"""Keeps a model's weights as they were loaded. On CPU, vLLM would pack those of linear layers and drop the plain ones,
which no update could reach any more."""

from dataclasses import replace
from typing import Any

from torch import nn
from vllm.config import ModelConfig, VllmConfig
from vllm.config.load import LoadConfig
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod, VocabParallelEmbedding
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.platforms import current_platform

LOAD_FORMAT = "omni_rl_plain"
"""The load format under which vLLM finds the loader."""


class PlainWeightsLoader(DefaultModelLoader):  # type: ignore[misc]
    """The loader of safetensors files for a model that is to be updated in place; it extends vLLM's own."""

    def __init__(self, load_config: LoadConfig) -> None:
        super().__init__(replace(load_config, load_format="safetensors"))

    def create_model(self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str = "") -> nn.Module:
        """Return the model, ready for its weights to be loaded."""
        model: nn.Module = super().create_model(vllm_config, model_config, prefix)
        if current_platform.is_cpu():
            keep_plain_weights(model)
        return model


class PlainEmbeddingMethod(UnquantizedEmbeddingMethod):  # type: ignore[misc]
    """Makes the output head multiply by the weight itself, not by a packed copy made at loading."""

    def process_weights_after_loading(self, layer: Any) -> None:
        layer.cpu_linear = nn.functional.linear


def keep_plain_weights(model: nn.Module) -> None:
    """Mark every linear layer and embedding of `model` before its weights are loaded, so that vLLM leaves them as they
    are."""
    for module in model.modules():
        if isinstance(module, LinearBase):
            # vLLM's own mark for layers whose weight is read elsewhere: F.linear, nothing packed, nothing dropped.
            module._cpu_skip_gemm_dispatch = True
        elif isinstance(module, VocabParallelEmbedding):
            module.quant_method = PlainEmbeddingMethod()
