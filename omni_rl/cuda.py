"""The reason why a process has no CUDA device. This module imports torch."""

import torch


def why_no_cuda() -> str | None:
    """Return the reason as the end of a sentence, or None if this process sees a CUDA device that its torch can use."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"this torch {torch.__version__} was built without CUDA"
    return "this process sees none"
