"""Reads a TOML file that somebody wrote by hand."""

import tomllib
from pathlib import Path
from typing import Any

from omni_rl.errors import ConfigError


def read_toml(path: Path) -> dict[str, Any]:
    """Return what the file says. Raises `ConfigError`, which names the file, if it cannot be read or is not TOML."""
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
