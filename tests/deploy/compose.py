"""docker-compose.yml as Compose reads it: with its variables in place."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
VARIABLE = re.compile(r"\$\{(?P<name>[A-Z_]+)(?::(?P<kind>[-?])(?P<word>[^}]*))?\}")
REQUIRED = {"OMNI_RL_UID": "1000", "OMNI_RL_SECRETS": "./secrets", "OMNI_RL_RUN": "digits"}


def load(variables: Mapping[str, str] = REQUIRED) -> dict[str, Any]:
    """The document. Raises `KeyError` for a variable that is required and not given."""

    def value(match: re.Match[str]) -> str:
        if match["kind"] == "-":
            return variables.get(match["name"], match["word"])
        return variables[match["name"]]

    document: dict[str, Any] = yaml.safe_load(VARIABLE.sub(value, TEXT))
    return document
