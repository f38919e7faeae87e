"""Process settings that must be in place before torch, transformers or vLLM are imported.

The heavy rooms (`models`, `media`, `rollout`, `train`) call `prepare()` in their `__init__`. It imports
nothing heavy itself.
"""

import importlib.abc
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

ENVIRONMENT = {
    # The engine lives in the actor's own process: an exception reaches the caller, hooks reach the model.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Ray places actors; vLLM's own binding would pin every replica to the same cores.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Split over threads, an attention's last bits follow their number and what else is in the batch.
    "VLLM_CPU_ATTN_SPLIT_KV": "0",
    # Without it vLLM compiles its resize and mel kernels, whose last bits differ from the eager ones.
    "TORCHDYNAMO_DISABLE": "1",
    # Models are local directories; nothing is ever fetched from a hub.
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def prepare() -> None:
    """Set the environment (a value that is already set wins) and make torchvision importable. Idempotent."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "torchvision" not in sys.modules and not any(isinstance(f, _TorchvisionSchemas) for f in sys.meta_path):
        sys.meta_path.insert(0, _TorchvisionSchemas())


class _TorchvisionSchemas(importlib.abc.MetaPathFinder):
    """Lets PyPI's torchvision import beside a CPU build of torch.

    Its compiled operators were built for CUDA and do not load, but its fake kernels need the schemas of two of
    them to exist. A torchvision from PyTorch's CPU index loads its operators itself; then nothing is defined here.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "torchvision":
            return None
        sys.meta_path.remove(self)
        _define_missing_schemas()
        return None


_library: object = None  # torch drops the schemas when the Library object is collected


def _define_missing_schemas() -> None:
    global _library
    import importlib.metadata

    import torch

    same_build = "+cpu" in importlib.metadata.version("torchvision") or "+cpu" not in torch.__version__
    if same_build or hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _library = library
