"""What TRL's vLLM says of itself: which dtype it computes in, how it samples, and when it was last given weights."""

import functools
from collections.abc import Callable
from typing import Any

from omni_rl.consistency.dtypes import DTYPES, Dtype
from omni_rl.consistency.posted.step import LogprobsOf
from omni_rl.errors import ConfigError

MODES: dict[str, LogprobsOf] = {"processed_logprobs": "processed", "raw_logprobs": "raw"}
CUTS = {"top_p": 1.0, "top_k": 0.0, "min_p": 0.0, "repetition_penalty": 1.0}
"""The settings that narrow or bend the distribution that is sampled, with the value at which each does nothing."""
PENALTIES = {"frequency_penalty": 0.0, "presence_penalty": 0.0}


class Engine:
    """`trainer.vllm_generation` as the watcher sees it, colocated or behind a server.

    `version` names the weights that the engine was last given, by the trainer's step at that time: what was handed to
    the model's own loader, not what a sync was asked for. It is None on the ranks that a server does not hear from.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._generation = trainer.vllm_generation
        self._colocated = self._generation.mode == "colocate"
        self.version: str | None = version_of(trainer)
        if self._colocated:
            worker = self._generation.llm.llm_engine.model_executor.driver_worker
            _after(worker.model_runner.model, "load_weights", self._loaded)
        elif trainer.accelerator.is_main_process:
            _after(self._generation.vllm_client, "update_named_params", self._loaded)
        else:
            self.version = None

    def _loaded(self) -> None:
        self.version = version_of(self._trainer)

    @functools.cached_property
    def _config(self) -> dict[str, Any]:
        """What the engine's model configuration says of dtype and logprobs; a server tells the main process alone."""
        if self._colocated:
            config = self._generation.llm.llm_engine.model_config
            return {"dtype": str(config.dtype), "logprobs_mode": config.logprobs_mode}
        if self._trainer.accelerator.is_main_process:
            told: dict[str, Any] = self._generation.vllm_client.get_server_info()["model_config"]
            return told
        return {}

    @property
    def dtype(self) -> Dtype | None:
        return dtype_of(self._config.get("dtype"))

    @property
    def logprobs_of(self) -> LogprobsOf:
        # vLLM's enumeration has the mode's name as its value.
        return MODES.get(str(self._config.get("logprobs_mode")).lower().rpartition(".")[2], "unknown")

    @property
    def asked(self) -> dict[str, Any]:
        """How the engine is asked to sample: TRL's own settings, and `generation_kwargs`, which override them in the
        engine alone."""
        own = {name: getattr(self._generation, name) for name in ("temperature", *CUTS)}
        return {**own, **self._generation.generation_kwargs}

    @property
    def cuts(self) -> dict[str, float]:
        """The settings that cut off or bend the distribution, by name; empty where the whole distribution is
        sampled."""
        asked, nothing = self.asked, {**CUTS, **PENALTIES}
        return {name: asked[name] for name in nothing if asked.get(name) not in (None, nothing[name], -1)}

    def ask_for_logprobs(self) -> None:
        """Ask for the sampled token's logprob, which costs the engine nothing; RLOO asks for none."""
        if self._generation.logprobs is None:
            self._generation.logprobs = 0


def dtype_of(name: object) -> Dtype | None:
    """Return our name of torch's dtype, or None for one that we have no limits for."""
    said = str(name).removeprefix("torch.")
    return next((dtype for dtype in DTYPES if dtype == said), None)


def version_of(trainer: Any) -> str:
    """Return the name of the trainer's weights as of now."""
    return f"step-{trainer.state.global_step}"


def train_dtype(trainer: Any) -> Dtype | None:
    """Return the dtype that the trainer computes logprobs in: that of its autocast, or else of its weights."""
    mixed = {"bf16": "bfloat16", "fp16": "float16"}.get(trainer.accelerator.mixed_precision)
    return dtype_of(mixed or next(trainer.model.parameters()).dtype)


def wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Replace one object's method by `around`, which takes the method before its arguments.

    Raises:
        ConfigError: The object has no such method.
    """
    inner = getattr(owner, name, None)
    if not callable(inner):
        raise ConfigError(f"{type(owner).__name__} has no {name}; trl 1.16 is known to work")

    @functools.wraps(inner)
    def outer(*args: Any, **kwargs: Any) -> Any:
        return around(inner, *args, **kwargs)

    setattr(owner, name, outer)


def _after(owner: Any, name: str, then: Callable[[], None]) -> None:
    def around(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = inner(*args, **kwargs)
        then()
        return result

    wrap(owner, name, around)
