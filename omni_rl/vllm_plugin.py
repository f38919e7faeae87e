"""What vLLM loads through the entry point `vllm.general_plugins`, in every process of every vLLM that this package is
installed beside.

Nearly all of those have nothing to do with us. So it imports the standard library alone, sets nothing, and returns at
once unless a variable asks for more; and what that then imports knows the insides of some versions of vLLM only.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

ENGINE = "OMNI_RL_ENGINE"
"""1: vLLM is to serve Nemotron Omni as our engine does. The engine sets it while it starts, for vLLM's processes."""
SUPPORTED = ("0.32",)
"""Versions of vLLM whose insides the engine was proven with."""


def register() -> None:
    """Teach vLLM our policy where `OMNI_RL_ENGINE` asks for it.

    A version of vLLM that is not supported is left as it is, with a warning: no engine of ours starts with it.
    """
    if os.environ.get(ENGINE) != "1":
        return
    from vllm import __version__

    reason = unsupported(__version__)
    if reason:
        warnings.warn(f"{ENGINE} is set, but {reason}; this vLLM is left as it is", RuntimeWarning, stacklevel=2)
        return
    from omni_rl.rollout import registration

    registration.register()


def unsupported(version: str) -> str:
    """Why our engine does not run with that version of vLLM; empty if it does."""
    if ".".join(version.split(".")[:2]) in SUPPORTED:
        return ""
    return f"omni-rl's engine was proven with vLLM {' and '.join(f'{known}.*' for known in SUPPORTED)}, not {version}"


@contextmanager
def asked() -> Iterator[None]:
    """Sets `OMNI_RL_ENGINE` for the processes that vLLM starts meanwhile."""
    before = os.environ.get(ENGINE)
    os.environ[ENGINE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[ENGINE]
        else:
            os.environ[ENGINE] = before
