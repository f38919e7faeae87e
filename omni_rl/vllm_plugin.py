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


AGENT = "OMNI_RL_AGENT"
"""A coordinator's address, or 1: the agent tells it what updates of weights do, in whatever engine this is."""
WATCHABLE = ("0.12", "0.25", "0.32")
"""Versions of vLLM that have the agent's seats where it looks for them."""
RAY_COPIES = "VLLM_RAY_EXTRA_ENV_VARS_TO_COPY"


def register() -> None:
    """Teach vLLM our policy where `OMNI_RL_ENGINE` asks for it, and seat the agent where `OMNI_RL_AGENT` does.

    A version of vLLM that is not known is left as it is, with a warning: no engine of ours starts with it.
    """
    if os.environ.get(AGENT, "0") not in ("", "0"):
        watch()
    if os.environ.get(ENGINE) == "1":
        serve()


def watch() -> None:
    """Seat the agent in this process's vLLM, and have the workers that Ray starts elsewhere told to do the same."""
    from vllm import __version__

    if _minor(__version__) not in WATCHABLE:
        known = ", ".join(f"{one}.*" for one in WATCHABLE)
        warnings.warn(
            f"{AGENT} is set, but the agent knows vLLM {known}, not {__version__}; this vLLM is left as it is",
            RuntimeWarning,
            stacklevel=2,
        )
        return
    from omni_rl.agent.install import install
    from omni_rl.agent.settings import CARRIED

    copied = [*filter(None, os.environ.get(RAY_COPIES, "").split(",")), *CARRIED]
    os.environ[RAY_COPIES] = ",".join(dict.fromkeys(copied))
    try:
        install()
    except Exception as error:
        # The boundary between our code and somebody's engine, which starts all the same.
        warnings.warn(f"omni-rl's agent is not there: {error}", RuntimeWarning, stacklevel=2)


def serve() -> None:
    """Teach vLLM our policy, where this is a version that our engine was proven with."""
    from vllm import __version__

    reason = unsupported(__version__)
    if reason:
        warnings.warn(f"{ENGINE} is set, but {reason}; this vLLM is left as it is", RuntimeWarning, stacklevel=2)
        return
    from omni_rl.rollout import registration

    registration.register()


def unsupported(version: str) -> str:
    """Why our engine does not run with that version of vLLM; empty if it does."""
    if _minor(version) in SUPPORTED:
        return ""
    return f"omni-rl's engine was proven with vLLM {' and '.join(f'{known}.*' for known in SUPPORTED)}, not {version}"


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


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
