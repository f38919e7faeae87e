"""What the OpenAPI document says beyond what FastAPI finds out by itself: the schema of records."""

from typing import Any

import pyarrow as pa
from fastapi import FastAPI

from omni_rl.ledger.schema import COLUMNS, Column


def add_records_schema(app: FastAPI, version: str) -> None:
    """Put `Records`, the JSON form of a step's records, among the document's schemas."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        document["components"]["schemas"]["Records"] = records_schema(version)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def records_schema(version: str) -> dict[str, Any]:
    """JSON schema of the columns that `omni_rl.ledger.schema` publishes."""
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
