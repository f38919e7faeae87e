"""Describes the REST API as docs/rest.md has it, from the OpenAPI document."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from omni_rl_services.coordinator import deps
from omni_rl_services.coordinator.app import create_app
from omni_rl_services.coordinator.settings import CoordinatorSettings, MediaSettings

from tools.markdown import GENERATED, row, wrapped

SCOPES = {deps.reader: "read", deps.syncer: "sync", deps.admin: "admin"}


def rest() -> str:
    with tempfile.TemporaryDirectory() as directory:
        media = MediaSettings(directory=Path(directory) / "media")
        app = create_app(CoordinatorSettings(ledger=f"sqlite:///{directory}/ledger.db", media=media))
        document = app.openapi()
        scopes = dict(_scopes(app))
        app.state.coordinator.steps.close()
    lines = ["# REST API", "", *wrapped(document["info"]["description"])]
    lines += wrapped(
        "The same as OpenAPI: `GET /openapi.json`. A token goes into `Authorization: Bearer TOKEN`; its scope is read, "
        "sync or admin, and each includes the ones before it. Where no token is needed, the table says so."
    )
    lines += ["| | | scope |", "|---|---|---|"]
    operations = [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    for path, method, operation in operations:
        first = " ".join(operation["description"].split()).split(". ")[0].removesuffix(".") + "."
        lines.append(row(f"`{method.upper()} {path}`", first, scopes.get((path, method), "no token")))
    lines.append("")
    for path, method, operation in operations:
        lines += _operation(path, method, operation)
    lines += ["## Bodies", ""]
    for name, schema in sorted(document["components"]["schemas"].items()):
        lines += _schema(name, schema)
    return GENERATED + "\n".join(lines)


def _scopes(app: FastAPI) -> Iterator[tuple[tuple[str, str], str]]:
    for route in app.routes:
        if isinstance(route, APIRoute):
            needed = [SCOPES[part.call] for part in route.dependant.dependencies if part.call in SCOPES]
            for method in route.methods:
                if needed:
                    yield (route.path_format, method.lower()), needed[0]


def _operation(path: str, method: str, operation: dict[str, Any]) -> list[str]:
    lines = [f"### {method.upper()} {path}", "", *wrapped(operation["description"])]
    parameters = operation.get("parameters", [])
    if parameters:
        lines += ["| parameter | in | type | |", "|---|---|---|---|"]
        for one in parameters:
            required = "required" if one.get("required") and one["in"] != "path" else ""
            note = "; ".join(filter(None, (one.get("description", "").removesuffix("."), required)))
            lines.append(row(f"`{one['name']}`", one["in"], _kind(one["schema"]), note))
        lines.append("")
    for content, body in operation.get("requestBody", {}).get("content", {}).items():
        lines += [f"Takes {_kind(body.get('schema', {}))} as `{content}`.", ""]
    lines += ["| answer | |", "|---|---|"]
    for status, response in operation["responses"].items():
        kinds = {_kind(body["schema"]) for body in response.get("content", {}).values() if body.get("schema")}
        kinds -= {_link("Problem"), "any"}
        lines.append(row(status, "; ".join([response["description"].removesuffix("."), *sorted(kinds)])))
    return [*lines, ""]


def _schema(name: str, schema: dict[str, Any]) -> list[str]:
    lines = [f"### {name}", "", *wrapped(schema.get("description", ""))]
    if "enum" in schema:
        lines += [", ".join(f"`{value}`" for value in schema["enum"]), ""]
    if "properties" in schema:
        required = set(schema.get("required", ()))
        lines += ["| name | type | |", "|---|---|---|"]
        for field, kind in schema["properties"].items():
            note = [kind.get("description", "").removesuffix("."), "required" if field in required else ""]
            if kind.get("default") is not None:
                note.append(f"default `{json.dumps(kind['default'])}`")
            lines.append(row(f"`{field}`", _kind(kind), "; ".join(filter(None, note))))
        lines.append("")
    for example in schema.get("examples", ()):
        lines += ["```json", json.dumps(example, indent=1), "```", ""]
    return lines


def _kind(schema: dict[str, Any]) -> str:
    """Describe a schema in a few words, with links to those that have a name."""
    if "$ref" in schema:
        return _link(schema["$ref"].rpartition("/")[2])
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return " or ".join(dict.fromkeys(_kind(one) for one in schema[choice]))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    match schema.get("type"):
        case "array":
            return f"list of {_kind(schema.get('items', {}))}"
        case "object" if isinstance(schema.get("additionalProperties"), dict):
            return f"object of {_kind(schema['additionalProperties'])}"
        case list() as kinds:
            return " or ".join(kinds)
        case str() as kind:
            return kind
    return "any"


def _link(name: str) -> str:
    return f"[{name}](#{name.lower()})"
