"""Defines the grammar: request number N of a seed, always the same bytes."""

import json
import random
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from blake3 import blake3

from omni_rl_bench.fuzz import documents, media, records
from omni_rl_bench.fuzz.heads import Request, odd_request, odd_text, request
from omni_rl_bench.fuzz.operations import Operation, Schema, operations_of
from omni_rl_bench.fuzz.values import RUNS, Values

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"
STREAMS = "/v1/events"
"""A route that answers for as long as the client listens: only the head of its answer is read."""
NEW_STEP = 1_000
"""How many requests lie between one new step of the runs and the next."""


@dataclass(frozen=True)
class Case:
    """Request `number`, to an `operation`. `odd` says what is odd about it."""

    number: int
    operation: str
    odd: str
    request: Request
    streams: bool = False

    @property
    def what(self) -> str:
        return f"{self.operation}: {self.odd}"


@dataclass(frozen=True)
class _Draft:
    """A request before it is written."""

    operation: Operation
    path: dict[str, str]
    query: list[tuple[str, str]]
    headers: tuple[tuple[bytes, bytes], ...]
    content_type: str
    body: bytes


class Grammar:
    """The requests of one OpenAPI `document`. `token` is what requests bear, where the coordinator asks for one."""

    def __init__(self, document: Schema, seed: int, token: str | None = None) -> None:
        self._document = document
        self._seed = seed
        self._token = token
        found = operations_of(document)
        # Most can go wrong with bodies.
        self._operations = [one for one in found for _ in range(1 + 2 * len(one.bodies))]
        self._by_name = {one.name: one for one in found}

    @property
    def operations(self) -> tuple[str, ...]:
        """The names of all operations."""
        return tuple(self._by_name)

    def case(self, number: int) -> Case:
        """Return request `number`. The first ones make runs and store media, which later ones name."""
        rng = random.Random(f"{self._seed}/{number}")  # noqa: S311 - no secrets
        if number < RUNS:
            body = {"run": f"run-{number}", "model": "none", "dtype": rng.choice(("float32", "bfloat16"))}
            made = self._request(_Draft(self._by_name["POST /v1/runs"], {}, [], (), JSON, documents.written(body)))
            return Case(number, "POST /v1/runs", "valid", made)
        operation = rng.choice(self._operations)
        draft = self._valid(operation, rng, number // NEW_STEP)
        what = rng.choice(("valid", "path", "query", "body", "body", "body", "type", "head", "head"))
        made = self._odd(draft, what, rng)
        return Case(number, operation.name, what, made, operation.path == STREAMS)

    def _odd(self, draft: _Draft, what: str, rng: random.Random) -> Request:
        match what:
            case "path" if draft.path:
                name = rng.choice(sorted(draft.path))
                return self._request(replace(draft, path={**draft.path, name: odd_text(rng)}))
            case "query":
                names = [name for name, _ in draft.query] or ["limit", "x", "", "%00", "run"]
                return self._request(replace(draft, query=[*draft.query, (rng.choice(names), odd_text(rng))]))
            case "body" if draft.body:
                return self._request(self._odd_body(draft, rng))
            case "type":
                others = (
                    "",
                    "text/plain",
                    JSON,
                    ARROW,
                    "application/json; charset=utf-16",
                    "image/png",
                    "a/b; c=\xff",
                    "\0",
                )
                made = replace(draft, content_type=rng.choice((*others, draft.content_type.upper())))
                return replace(self._request(made), answering="perhaps")
            case "head":
                return odd_request(self._request(draft), rng)
            case _:
                return self._request(draft)

    def _valid(self, operation: Operation, rng: random.Random, reach: int) -> _Draft:
        values = Values(self._document, rng, reach)
        path: dict[str, str] = {}
        query: list[tuple[str, str]] = []
        headers: tuple[tuple[bytes, bytes], ...] = ()
        for parameter in operation.parameters:
            if parameter.where != "path" and rng.random() < 0.5:
                continue
            value = values.of(parameter.schema, parameter.name)
            match parameter.where:
                case "path":
                    path[parameter.name] = quote(str(value), safe="/" if parameter.name == "sample" else "")
                case "query":
                    several = value if isinstance(value, list) else [value]
                    query += [(parameter.name, quote(_plain(one))) for one in several if one is not None]
                case "header":
                    headers = (*headers, (parameter.name.encode(), _plain(value).encode(errors="replace")))
        content_type, body = "", b""
        if operation.bodies:
            content_type, schema = rng.choice(operation.bodies)
            body = self._body(operation, content_type, schema, values, rng)
        if content_type in media.KINDS:
            path["digest"] = blake3(body).hexdigest()
        return _Draft(operation, path, query, headers, content_type, body)

    def _body(
        self, operation: Operation, content_type: str, schema: Schema, values: Values, rng: random.Random
    ) -> bytes:
        if content_type == ARROW:
            return records.stream(records.rows(rng), rng)
        if content_type == JSON and schema.get("$ref", "").endswith("/Records"):
            return documents.written(records.document(records.rows(rng)))
        if content_type == JSON:
            return documents.written(values.of(schema))
        if rng.random() < 0.3:
            kept = [content for kind, content in media.shared() if kind == content_type]
            if kept:
                return kept[0]
        return media.make(content_type, rng)

    def _odd_body(self, draft: _Draft, rng: random.Random) -> _Draft:
        if draft.content_type == ARROW:
            return replace(draft, body=records.odd_stream(records.rows(rng), rng))
        if draft.content_type != JSON:
            body = media.make_odd(draft.content_type, rng)
            named = {**draft.path, "digest": blake3(body).hexdigest()} if rng.random() < 0.8 else draft.path
            return replace(draft, body=body, path=named)
        match rng.randrange(4):
            case 0:
                return replace(draft, body=documents.mutated_text(draft.body, rng))
            case 1 if b'"records"' in draft.body:
                odd = records.document(records.odd_rows(records.rows(rng), rng))
                return replace(draft, body=documents.written(odd))
            case _:
                value = documents.mutated_value(json.loads(draft.body), rng)
                return replace(draft, body=documents.written(value))

    def _request(self, draft: _Draft) -> Request:
        target = draft.operation.path
        for name, value in draft.path.items():
            target = target.replace("{" + name + "}", value)
        if draft.query:
            target += "?" + "&".join(f"{name}={value}" for name, value in draft.query)
        headers = draft.headers
        if self._token is not None:
            headers = (*headers, (b"Authorization", f"Bearer {self._token}".encode()))
        return request(draft.operation.method, target, draft.content_type, draft.body, headers)


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
