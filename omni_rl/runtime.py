"""The environment variables that a process of this project has before torch, transformers or vLLM is imported there.

No import sets them: whoever imports this package into a trainer or an engine of their own keeps their own environment.
They are set where a process of ours begins: by the commands of `omni-rl` (`prepare`), and by Ray for an actor
(`variables`, in `omni_rl.actors.share`). Code that cannot do without them asks for them (`require`).
"""

import os
import sys
from typing import NamedTuple

from omni_rl.errors import ConfigError


class Variable(NamedTuple):
    """The value of an environment variable, and the reason why it has that one."""

    value: str
    reason: str


ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": Variable(
        "0", "The engine lives in the actor's own process: an exception reaches the caller, hooks reach the model"
    ),
    "VLLM_CPU_OMP_THREADS_BIND": Variable(
        "nobind", "Ray places actors; vLLM's own binding would pin every replica to the same cores"
    ),
    "VLLM_CPU_ATTN_SPLIT_KV": Variable(
        "0", "Split over threads, an attention's last bits follow their number and what else is in the batch"
    ),
    "TORCHDYNAMO_DISABLE": Variable(
        "1", "Without it vLLM compiles its resize and mel kernels, whose last bits differ from the eager ones"
    ),
    "HF_HUB_OFFLINE": Variable("1", "Models are local directories; nothing is ever fetched from a hub"),
    "VLLM_NO_USAGE_STATS": Variable("1", "vLLM would report what it runs on"),
    "TOKENIZERS_PARALLELISM": Variable("false", "The threads of the tokenizer would take the engine's cores"),
}


def variables() -> dict[str, str]:
    """Return the environment of an engine or a rank that this process starts; a variable that is set in this process
    wins."""
    return {name: os.environ.get(name, variable.value) for name, variable in ENVIRONMENT.items()}


def prepare() -> None:
    """Set the missing variables in this process's own environment. May be called again.

    Raises `ConfigError` where a variable is missing and torch was imported before: torch has read its settings by then.
    """
    missing = _missing()
    if missing and "torch" in sys.modules:
        raise ConfigError(
            f"torch is imported, and {', '.join(missing)} is not set: set it before, or call omni_rl.runtime.prepare() "
            "as the first thing in the process"
        )
    os.environ.update(variables())


def require(what: str) -> None:
    """Raise `ConfigError` unless this process has every variable that `what` needs. A value other than ours will do,
    since somebody chose it."""
    missing = _missing()
    if missing:
        raise ConfigError(
            f"{what} needs {', '.join(f'{name}={ENVIRONMENT[name].value}' for name in missing)} in the environment of "
            "its process: call omni_rl.runtime.prepare() there before torch is imported, or have "
            "omni_rl.rollout.handle.RolloutHandle start the engine"
        )


def _missing() -> list[str]:
    return [name for name in ENVIRONMENT if name not in os.environ]
