"""Adds to the OpenAPI document what FastAPI does not find out by itself: problems, and the schema of records."""

import asyncio
import json
import threading
from typing import Any

import pyarrow as pa
from fastapi import FastAPI, Response
from pydantic.json_schema import models_json_schema

from omni_rl.api.updates import AnnouncementBody, ReceiptBody
from omni_rl.ledger.schema import COLUMNS, Column
from omni_rl_services.coordinator.problems import MEDIA_TYPE

PATH = "/openapi.json"
REF = "#/components/schemas/{model}"
TOLD = (ReceiptBody, AnnouncementBody)
PROBLEM = {"$ref": "#/components/schemas/Problem"}
INVALID = {"$ref": "#/components/schemas/HTTPValidationError"}


def complete(app: FastAPI, version: str) -> None:
    """Make the app's document say that problems are problem+json, and what `Records` are; and serve it."""
    generate, turn = app.openapi, threading.Lock()
    written: bytes | None = None

    def openapi() -> dict[str, Any]:
        with turn:
            if app.openapi_schema is None:
                _complete(generate(), version)
            assert app.openapi_schema is not None, "FastAPI keeps what it generates"
            return app.openapi_schema

    def text() -> bytes:
        nonlocal written
        if written is None:
            written = json.dumps(openapi()).encode()
        return written

    # FastAPI's own route makes the document while the event loop waits, which takes a few tenths of a second.
    @app.get(PATH, include_in_schema=False)
    async def document() -> Response:
        return Response(await asyncio.to_thread(text), media_type="application/json")

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(document: dict[str, Any], version: str) -> None:
    for methods in document["paths"].values():
        for operation in methods.values():
            for response in operation["responses"].values():
                # FastAPI files every model under the route's own content type, and its own validation error besides.
                if any(body.get("schema") in (PROBLEM, INVALID) for body in response.get("content", {}).values()):
                    response["content"] = {MEDIA_TYPE: {"schema": PROBLEM}}
    schemas = document["components"]["schemas"]
    schemas["Records"] = records_schema(version)
    # These are read in a thread, out of FastAPI's sight.
    _, told = models_json_schema([(model, "validation") for model in TOLD], ref_template=REF)
    schemas |= told["$defs"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)


def records_schema(version: str) -> dict[str, Any]:
    """Return the JSON schema of the columns that `omni_rl.ledger.schema` publishes."""
    record = {
        "type": "object",
        "additionalProperties": False,
        "required": [column.name for column in COLUMNS if column.required],
        "properties": {column.name: _column(column) for column in COLUMNS},
    }
    return {
        "type": "object",
        "title": "Records",
        "description": f"A rank's records of a step, {version}. As an Arrow stream: the same columns.",
        "additionalProperties": False,
        "required": ["schema", "records"],
        "properties": {"schema": {"const": version}, "records": {"type": "array", "items": record}},
    }


def _column(column: Column) -> dict[str, Any]:
    length = f" Length: {column.length}." if column.length else ""
    found = {**_type(column.type), "description": column.meaning + length}
    if not column.required:
        found["type"] = [found["type"], "null"]
    return found


def _type(wanted: pa.DataType) -> dict[str, Any]:
    kind = pa.types
    if kind.is_list(wanted):
        return {"type": "array", "items": _type(wanted.value_type)}
    if kind.is_struct(wanted):
        fields = [wanted.field(number) for number in range(wanted.num_fields)]
        return {"type": "object", "properties": {field.name: _type(field.type) for field in fields}}
    if kind.is_string(wanted):
        return {"type": "string"}
    if kind.is_boolean(wanted):
        return {"type": "boolean"}
    return {"type": "integer"} if kind.is_integer(wanted) else {"type": "number"}
