"""Lists the model families that are served, and finds the one that a checkpoint is of.

Processes hand each other a checkpoint's path alone, and each finds the family itself.
"""

import json
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from pkgutil import resolve_name

from omni_rl.errors import CheckpointError, ConfigError
from omni_rl.models.family import Family

OURS = ("omni_rl.models.nemotron_omni.family:FAMILY",)
"""Where the families of this package are, as "module:object"."""
ENTRY_POINTS = "omni_rl.model_families"
"""The group of entry points by which other packages that are installed add theirs."""


@cache
def families() -> tuple[Family, ...]:
    """Return all families that this process can serve, ours first.

    Raises `ConfigError` if one cannot be imported, or is none.
    """
    theirs = sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name)
    # A package that lies on the path twice says everything twice.
    return tuple(_imported(place) for place in (*OURS, *dict.fromkeys(point.value for point in theirs)))


def _imported(place: str) -> Family:
    remedy = f"mend or remove the package that names it in the entry points {ENTRY_POINTS}"
    try:
        found = resolve_name(place)
    except Exception as error:  # somebody's code, which may raise anything
        said = f"{type(error).__name__}: {error}"
        raise ConfigError(f"the model family at {place} cannot be imported: {said}; {remedy}") from error
    if not isinstance(found, Family):
        raise ConfigError(f"the model family at {place} is a {type(found).__name__}, no Family; {remedy}")
    return found


def is_weight(name: str) -> bool:
    """Return whether a released tensor is a weight, as far as its name alone tells: no family derives it."""
    return all(family.released.is_sent(name) for family in families())


def family_of(checkpoint: Path) -> Family:
    """Return the family of a checkpoint directory, by the model type in its config.json.

    Raises:
        CheckpointError: the directory has no config.json, or that is not JSON.
        ConfigError: no family serves that model type; the message names those that are served.
    """
    path = checkpoint / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{checkpoint} is not a checkpoint directory: it has no config.json") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    found = [family for family in families() if kind in family.model_types]
    if len(found) > 1:
        names = " and ".join(family.name for family in found)
        raise ConfigError(f"{names} both serve {kind!r} models; remove the package of one of them")
    if found:
        return found[0]
    what = "names no model type" if kind is None else f"is a {kind!r} model"
    served = "; ".join(f"{family.name} ({' or '.join(map(repr, family.model_types))})" for family in families())
    raise ConfigError(f"the checkpoint {what}; engines and trainers here serve {served}")
