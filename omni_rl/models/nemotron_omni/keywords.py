"""Reads the keywords that transformers' users give `from_pretrained`: what each means here, and which are refused."""

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import torch

from omni_rl.errors import ConfigError
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig

# These keywords change nothing here: no remote code is run, nothing is fetched, weights are read once into their place.
_WITHOUT_EFFECT = ("trust_remote_code", "low_cpu_mem_usage", "local_files_only", "use_safetensors", "cache_dir")
_OURS = "sdpa"


@dataclass(frozen=True)
class Loading:
    """The device that a model is loaded to, its dtype (None: the checkpoint's), and its configuration (None: the
    checkpoint's)."""

    device: torch.device
    dtype: torch.dtype | str | None = None
    config: NemotronOmniConfig | None = None

    @classmethod
    def taken_from(cls, keywords: MutableMapping[str, Any]) -> "Loading":
        """Take what is meant for loading out of `from_pretrained`'s keywords. Raises `ConfigError` for a value that is
        not supported."""
        for name in _WITHOUT_EFFECT:
            if keywords.pop(name, None) is False and name == "use_safetensors":
                raise ConfigError("use_safetensors=False asks for pickled weights, which can run code; leave it out")
        attention = keywords.pop("attn_implementation", None)
        if attention not in (None, _OURS):
            raise ConfigError(f"attn_implementation {attention!r} is not supported; leave it out, or use {_OURS!r}")
        config = keywords.pop("config", None)
        if config is not None and not isinstance(config, NemotronOmniConfig):
            raise ConfigError(f"config is a {type(config).__name__}; give a NemotronOmniConfig")
        return cls(_device(keywords), _one_of(keywords, "dtype", "torch_dtype"), config)


def _device(keywords: MutableMapping[str, Any]) -> torch.device:
    device = keywords.get("device_map")
    if isinstance(device, dict):
        if set(device) != {""}:
            raise ConfigError("device_map places parts of the model apart, which is not supported; give one device")
        keywords["device_map"] = device[""]
    device = _one_of(keywords, "device", "device_map")
    if device in ("auto", "balanced", "balanced_low_0", "sequential"):
        raise ConfigError(
            f"device_map {device!r} would spread the model over devices, which is not supported; give one device, or "
            "shard it over ranks (omni_rl.models.nemotron_omni.parallel.load_sharded)"
        )
    try:
        return torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"{device!r} is no device of torch: {error}") from error


def _one_of(keywords: MutableMapping[str, Any], name: str, other: str) -> Any:
    """Return the value of two names of one thing. Raises `ConfigError` if both are given and differ."""
    first, second = keywords.pop(name, None), keywords.pop(other, None)
    if first is not None and second is not None and first != second:
        raise ConfigError(f"{name} is {first!r}, but {other} is {second!r}; give one of them")
    return second if first is None else first
