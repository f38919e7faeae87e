"""Finds what a coordinator of an older version does not know, by the document in which it publishes what it takes."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from omni_rl import __version__
from omni_rl.client.call import JSON, Call
from omni_rl.client.calls import ARROW

T = TypeVar("T")


class Known:
    """What a coordinator takes, by its OpenAPI document."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document

    def without_unknown(self, call: Call[T]) -> tuple[Call[T], list[str]]:
        """Return the call without fields and columns that the coordinator does not know, and their names."""
        schema = self._schema(call)
        if schema is None or call.content is None:
            return call, []
        if call.headers.get("Content-Type") == ARROW:
            columns = schema["properties"]["records"]["items"]["properties"]
            content, unknown = _without_columns(call.content, columns)
        else:
            value = json.loads(call.content)
            unknown = list(self._remove(value, schema))
            content = json.dumps(value).encode()
        return replace(call, content=content) if unknown else call, unknown

    def sentence(self, unknown: list[str]) -> str:
        """Return the sentence that says what was left out."""
        return (
            f"the coordinator (omni-rl {self._document['info']['version']}) does not know {', '.join(unknown)}, which "
            f"this omni-rl ({__version__}) leaves out: install one version on both sides to have it judged"
        )

    def _schema(self, call: Call[Any]) -> Mapping[str, Any] | None:
        """Return the schema of the body that the call's route takes as JSON; None if it takes none."""
        for path, methods in self._document["paths"].items():
            if re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path)), call.path) is None:
                continue
            content = methods.get(call.method.lower(), {}).get("requestBody", {}).get("content", {})
            return self._resolved(content[JSON]["schema"]) if JSON in content else None
        return None

    def _resolved(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        while "$ref" in schema:
            schema = self._document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return schema

    def _remove(self, value: Any, schema: Mapping[str, Any]) -> Iterator[str]:
        """Remove unknown fields from a JSON value, in place, and yield their names."""
        for either in schema.get("anyOf", ()):
            yield from self._remove(value, self._resolved(either))
        if isinstance(value, list) and "items" in schema:
            for item in value:
                yield from self._remove(item, self._resolved(schema["items"]))
        if not isinstance(value, dict) or "properties" not in schema:
            return
        known = schema["properties"]
        if schema.get("additionalProperties") is False:
            for name in sorted(value.keys() - known.keys()):
                del value[name]
                yield name
        for name in value.keys() & known.keys():
            yield from self._remove(value[name], self._resolved(known[name]))


def known() -> Call[Known]:
    """Return the call that asks a coordinator for its OpenAPI document."""
    return Call("GET", "/openapi.json", lambda response: Known(response.json()))


def _without_columns(stream: bytes, known: Mapping[str, Any]) -> tuple[bytes, list[str]]:
    # Arrow is loaded only where records are posted.
    import pyarrow as pa

    from omni_rl.ledger.wire import as_stream

    table = pa.ipc.open_stream(stream).read_all()
    unknown = [name for name in table.column_names if name not in known]
    return as_stream(table.drop_columns(unknown)), unknown
