"""Lists every operation of the coordinator's OpenAPI document, so that none is missed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Schema = Mapping[str, Any]
METHODS = ("get", "put", "post", "delete", "patch")
BESIDE = ("/", "/openapi.json", "/dashboard/{path}")
"""The routes that the document leaves out."""


@dataclass(frozen=True)
class Parameter:
    """One value that an operation takes; `where` is its path, query, header or cookie."""

    name: str
    where: str
    schema: Schema


@dataclass(frozen=True)
class Operation:
    """One operation. `bodies` has, by content type, the schema of what is read."""

    method: str
    path: str
    parameters: tuple[Parameter, ...] = ()
    bodies: tuple[tuple[str, Schema], ...] = ()

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"


def operations_of(document: Schema) -> list[Operation]:
    """Return the operations of the document, in its order, and those that it leaves out."""
    found = [
        Operation(
            method.upper(),
            path,
            tuple(Parameter(one["name"], one["in"], one["schema"]) for one in operation.get("parameters", ())),
            tuple(
                (kind, content.get("schema", {}))
                for kind, content in operation.get("requestBody", {}).get("content", {}).items()
            ),
        )
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method in METHODS
    ]
    for path in BESIDE:
        named = (Parameter("path", "path", {"type": "string"}),) if "{path}" in path else ()
        found.append(Operation("GET", path, named))
    return found
