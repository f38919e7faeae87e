"""Installs the agent in vLLM: in its workers, and in the EngineCore, which alone knows of cache resets and versions.

It does so by wrapping classes, from a plug-in: there is one `worker_extension_cls`, and another may have taken it.
"""

import atexit
import functools
import logging
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any

from omni_rl.agent.settings import AgentSettings

if TYPE_CHECKING:
    from omni_rl.client.posting import Poster

log = logging.getLogger("omni_rl.agent")
RECEIPTS = 32
"""The number of receipts that may wait to be sent to the coordinator."""
AT_EXIT = 3.0
"""The seconds that a process waits at its end for its last receipts to be sent."""
RESETS = {"reset_prefix_cache": "prefix", "reset_encoder_cache": "encoder", "reset_mm_cache": "multimodal"}


@cache
def install() -> None:
    """Wrap both classes in this process, once. A vLLM that lacks one of the methods is left as it is, with a
    warning."""
    settings = AgentSettings.from_environment()
    if settings is None:
        return
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    needed = ((WorkerWrapperBase, "init_device"), (EngineCore, "reset_prefix_cache"), (EngineCore, "collective_rpc"))
    missing = [f"{owner.__name__}.{name}" for owner, name in needed if not hasattr(owner, name)]
    if missing:
        warnings.warn(
            f"this vLLM has no {', '.join(missing)}: omni-rl's agent is not there", RuntimeWarning, stacklevel=2
        )
        return
    # A worker in a process of its own loads this plug-in within `init_worker`: to wrap that would be too late.
    _wrap(WorkerWrapperBase, "init_device", functools.partial(_attach, settings))
    # vLLM 0.12 resets no encoder cache, and only versions after 0.25 name their weights.
    for name, what in RESETS.items():
        if hasattr(EngineCore, name):
            _wrap(EngineCore, name, functools.partial(_reset, what))
    if hasattr(EngineCore, "set_weight_version"):
        _wrap(EngineCore, "set_weight_version", _versioned)


def _wrap(owner: type, name: str, then: Any) -> None:
    """Have `then(instance, result, *arguments)` called after a method of a class; what fails in it is logged."""
    inner = getattr(owner, name)

    @functools.wraps(inner)
    def wrapped(self: Any, *arguments: Any, **named: Any) -> Any:
        result = inner(self, *arguments, **named)
        try:
            then(self, result, *arguments, **named)
        except Exception:
            # The boundary between our code and somebody's engine, which goes on.
            log.exception("omni-rl: the agent failed at %s; the engine goes on", name)
        return result

    setattr(owner, name, wrapped)


def _attach(settings: AgentSettings, wrapper: Any, *_: Any, **__: Any) -> None:
    from omni_rl.agent.watching import Agent

    Agent(wrapper.worker, settings, poster(settings.url).put).attach()


@cache
def poster(url: str | None) -> "Poster":
    """Return the one poster, with its thread, for all engines and trainers of this process."""
    from omni_rl.client.posting import Poster

    # Of more receipts the oldest goes: what the engine holds now is what matters.
    found = Poster(url, None, log, items=RECEIPTS)
    atexit.register(found.flush, AT_EXIT)
    return found


def flush(seconds: float) -> bool:
    """Wait until every receipt of this process is sent, at most `seconds`; return whether all are."""
    settings = AgentSettings.from_environment()
    return settings is None or poster(settings.url).flush(seconds)


def _reset(what: str, core: Any, result: Any, *_: Any, **__: Any) -> None:
    # A prefix cache whose blocks are in use is not reset, and says so.
    if result is not False:
        _tell(core, what)


def _versioned(core: Any, _: Any, version: str) -> None:
    from omni_rl.agent.watching import VERSION

    _tell(core, VERSION, version)


def _tell(core: Any, *what: str) -> None:
    # A function, and no method's name: a worker that has no agent must not fail, since an executor of several workers
    # would hand the failures of all but the first to whoever calls it next.
    core.model_executor.collective_rpc(_note, args=what)


def _note(worker: Any, *what: str) -> None:
    from omni_rl.agent.watching import NOTED

    noted = getattr(worker, NOTED, None)
    if noted is not None:
        noted(*what)
