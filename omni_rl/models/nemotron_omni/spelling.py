"""Keeps the spelling in which a saved configuration was loaded; only values that changed are written anew.

transformers would write it in its own: other keys for the same thing, defaults that the file never had, sorted, and
floats such as Infinity in a form that only its newest releases read.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.nemotron_omni.native_config import MODEL_TYPE

_SECTIONS = ("llm_config", "vision_config", "sound_config")
_DTYPE = ("dtype", "torch_dtype")
_SPACE = re.compile(r"\s*")
Path = tuple[str, ...]
Span = tuple[int, int]


def served_config(config: NemotronOmniConfig, dtype: torch.dtype) -> NemotronOmniConfig:
    """Return a copy of the configuration for weights that are saved to be served in `dtype`."""
    served: NemotronOmniConfig = type(config).from_dict(config.to_dict())
    # vLLM's processor casts pixels to the config's dtype, and its language model reads its own section's.
    served.dtype = served.llm_config.dtype = dtype
    for section in (served.vision_config, served.sound_config):
        if section is not None and section.dtype is not None:
            section.dtype = dtype
    return served


def respelled(text: str, config: NemotronOmniConfig) -> str | None:
    """Return the config.json `text` with the values of `config`, every other byte as it was.

    Returns None if that is not possible: a key was removed, two spellings of one thing would contradict each other, or
    it is transformers' native spelling, which no engine reads.
    """
    if json.loads(text).get("model_type") == MODEL_TYPE:
        return None
    before, now = _values(_read(text)), _values(config)
    for path, value in _changes(before, now):
        text = _with(text, path, value)
    # This proves that nothing was missed: a reader of the text gets the configuration.
    return text if _values(_read(text)) == now else None


def _read(text: str) -> NemotronOmniConfig:
    config: NemotronOmniConfig = NemotronOmniConfig.from_dict(_plain(json.loads(text)))
    return config


def _plain(values: Any) -> dict[str, Any]:
    """Return the values with Infinity as a number, whichever way it was written."""
    plain: dict[str, Any] = NemotronOmniConfig._decode_special_floats(values)
    return plain


def _values(config: NemotronOmniConfig) -> dict[str, Any]:
    """Return everything in the configuration as plain JSON, without the paths that transformers notes."""
    values = _plain(json.loads(config.to_json_string(use_diff=False)))
    for section in (values, *(values[name] for name in _SECTIONS if values.get(name))):
        section.pop("_name_or_path", None)
    return values


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    for key, value in now.items():
        if isinstance(value, dict) and isinstance(before.get(key), dict):
            yield from _changes(before[key], value, (*path, key))
        elif key not in before or before[key] != value:
            yield (*path, key), value


def _with(text: str, path: Path, value: Any) -> str:
    """Return `text` with `value` at `path`, under each of the names that a dtype has there; a new key comes last."""
    members, start = _members(text, 0), 0
    *parents, key = path
    for depth, name in enumerate(parents):
        if name not in members:  # the section was only a default so far, so all of it is written
            for inner in reversed(path[depth + 1 :]):
                value = {inner: value}
            key = name
            break
        start = members[name][0]
        members = _members(text, start)
    names = [name for name in (_DTYPE if key == "dtype" else (key,)) if name in members]
    for begin, end in sorted((members[name] for name in names), reverse=True):
        text = text[:begin] + json.dumps(value) + text[end:]
    if names:
        return text
    if key == "dtype" and '"torch_dtype"' in text:
        key = "torch_dtype"
    after = max((end for _, end in members.values()), default=start + 1)
    space = _SPACE.match(text, start + 1)
    comma = "," if members else ""
    return f"{text[:after]}{comma}{space[0] if space else ''}{json.dumps(key)}: {json.dumps(value)}{text[after:]}"


def _members(text: str, start: int) -> dict[str, Span]:
    """Return where the values of the object at `start` lie in valid JSON; of two equal keys the last one counts."""
    decoder, found = json.JSONDecoder(), {}
    at = _skip(text, _skip(text, start) + 1)
    while text[at] != "}":
        key, at = decoder.raw_decode(text, at)
        begin = _skip(text, _skip(text, at) + 1)
        _, end = decoder.raw_decode(text, begin)
        found[key] = begin, end
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return found


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return at if match is None else match.end()
