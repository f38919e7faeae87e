"""vLLM loads this module through the entry point `vllm.general_plugins`, in every process of every vLLM that this
package is installed beside.

Nearly all of those have nothing to do with us. So the module needs the standard library alone, sets nothing, and
returns at once unless a variable asks for more. The code that it then imports knows the internals of some versions of
vLLM only.
"""

import os
import warnings

from omni_rl.vllm_engine import ENGINE, minor, unsupported

AGENT = "OMNI_RL_AGENT"
"""The coordinator's address, or 1: the agent reports to it what updates of weights do, in whatever engine this is."""
WATCHABLE = ("0.12", "0.25", "0.32")
"""The versions of vLLM that have the functions which the agent wraps where it looks for them."""
RAY_COPIES = "VLLM_RAY_EXTRA_ENV_VARS_TO_COPY"


def register() -> None:
    """Teach vLLM our policy where `OMNI_RL_ENGINE` asks for it, and install the agent where `OMNI_RL_AGENT` does.

    A version of vLLM that is not known is left as it is, with a warning: no engine of ours starts with it.
    """
    if os.environ.get(AGENT, "0") not in ("", "0"):
        watch()
    if os.environ.get(ENGINE) == "1":
        serve()


def watch() -> None:
    """Install the agent in this process's vLLM, and have Ray's workers elsewhere get the variables that ask for it."""
    from vllm import __version__

    if minor(__version__) not in WATCHABLE:
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
