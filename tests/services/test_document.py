"""What the OpenAPI document says that clients are generated from: statuses, parameters, and the schema of records."""

import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from omni_rl_services.coordinator.app import create_app
from omni_rl_services.coordinator.openapi import records_schema
from omni_rl_services.coordinator.settings import Bounds, CoordinatorSettings, MediaSettings

from omni_rl.ledger.schema import COLUMNS
from tests.ledgers import open_ledger
from tests.services.conftest import Serve, Served
from tests.services.posted import ARROW, CALM, RUN, post, seal

pytestmark = pytest.mark.anyio
STEP = "/v1/runs/{run}/attempts/{attempt}/steps/{step}"
BODY = "408 413 429"
"""A body may be too slow, too large, or too much at once."""
READ, NAMED = "200 401 403 503", "200 401 403 404 422 503"
STATUSES = [
    ("GET", "/healthz", "200 403"),
    ("GET", "/readyz", "200 403 503"),
    ("GET", "/metrics", READ),
    ("POST", "/v1/session", f"200 401 403 422 {BODY}"),
    ("GET", "/v1/session", "200 401 403"),
    ("DELETE", "/v1/session", "204 403 422"),
    ("GET", "/v1/state", "200 401 403"),
    ("POST", "/v1/pause", f"200 401 403 422 503 {BODY}"),
    ("POST", "/v1/resume", f"200 401 403 404 409 422 503 {BODY}"),
    ("POST", "/v1/runs", f"200 201 401 403 409 422 503 {BODY}"),
    ("GET", "/v1/runs", f"{READ} 422"),
    ("POST", "/v1/runs/{run}/end", NAMED),
    ("GET", "/v1/runs/{run}", NAMED),
    ("GET", "/v1/runs/{run}/attempts", NAMED),
    ("GET", "/v1/runs/{run}/limits", NAMED),
    ("GET", "/v1/runs/{run}/alarms", NAMED),
    ("GET", "/v1/incidents", f"{READ} 422"),
    ("GET", "/v1/incidents/{incident}", NAMED),
    ("POST", "/v1/incidents/{incident}/acknowledge", "200 401 403 404 409 422 503"),
    ("POST", "/v1/incidents/{incident}/notes", f"200 401 403 404 409 422 503 {BODY}"),
    ("POST", "/v1/incidents/{incident}/end", "200 401 403 404 409 422 503"),
    ("PUT", STEP + "/parts/{rank}", f"200 401 403 404 409 415 422 503 {BODY}"),
    ("POST", STEP + "/seal", f"200 401 403 404 409 422 503 {BODY}"),
    ("PUT", STEP + "/training", f"200 401 403 404 422 503 {BODY}"),
    ("GET", "/v1/runs/{run}/steps", NAMED),
    ("GET", "/v1/runs/{run}/timeline", NAMED),
    ("GET", STEP, NAMED),
    ("GET", STEP + "/samples/{sample}", NAMED),
    ("PUT", "/v1/runs/{run}/engines/{engine}/updates/{update}", f"200 401 403 404 409 422 503 {BODY}"),
    ("PUT", "/v1/runs/{run}/updates/{update}", f"200 401 403 404 409 422 503 {BODY}"),
    ("GET", "/v1/runs/{run}/updates", NAMED),
    ("POST", "/v1/syncs", f"200 202 401 403 409 422 503 {BODY}"),
    ("GET", "/v1/syncs", f"{READ} 422"),
    ("GET", "/v1/syncs/{sync}", NAMED),
    ("POST", "/v1/checks", f"200 401 403 404 409 422 503 {BODY}"),
    ("GET", "/v1/checks", f"{READ} 422"),
    ("GET", "/v1/checks/{check}", NAMED),
    ("POST", "/v1/jobs", f"201 401 403 404 409 422 503 {BODY}"),
    ("GET", "/v1/jobs", "200 401 403 422 503"),
    ("GET", "/v1/jobs/{job}", "200 401 403 404 422 503"),
    ("DELETE", "/v1/jobs/{job}", "200 401 403 404 422 503"),
    ("GET", "/v1/jobs/{job}/logs", "200 401 403 404 422 503"),
    ("GET", "/v1/events", "200 401 403 422 429 503"),
    ("GET", "/v1/events/page", f"{READ} 422"),
    ("PUT", "/v1/media/{digest}", f"200 401 403 415 422 503 {BODY}"),
    ("GET", "/v1/media/{digest}", NAMED),
]


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("document")
    url = f"sqlite:///{directory / 'ledger.db'}"
    with open_ledger(url) as ledger:
        settings = CoordinatorSettings(ledger=url, media=MediaSettings(directory=directory / "media"))
        found: dict[str, Any] = create_app(settings, ledger=ledger).openapi()
    return found


def test_every_operation_says_which_statuses_it_answers_with(document: dict[str, Any]) -> None:
    found = {
        (method.upper(), path): set(operation["responses"])
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert found == {(method, path): set(statuses.split()) for method, path, statuses in STATUSES}


PLACES = {"{run}": "digits", "{attempt}": "1", "{step}": "12", "{rank}": "0", "{engine}": "e0", "{update}": "1"} | {
    "{incident}": "1",
    "{check}": "1",
    "{job}": "abc",
    "{sync}": "abc",
    "{sample}": "a",
    "{digest}": "0" * 64,
}
BODIES: dict[tuple[str, str], Any] = {
    ("POST", "/v1/session"): {"token": "any"},
    ("POST", "/v1/pause"): {"reason": "maintenance"},
    ("POST", "/v1/runs"): RUN,
    ("POST", "/v1/incidents/{incident}/notes"): {"text": "mine"},
    ("PUT", f"{STEP}/training"): {"training": {}},
    ("POST", "/v1/jobs"): {"kind": "grpo", "parameters": {"run": "new"}},
}


@pytest.mark.parametrize("there", [False, True])
async def test_every_operation_answers_as_its_document_says(served: Served, there: bool) -> None:
    """Every operation is asked where nothing is there, and where a run and a step are."""
    if there:
        await served.http.post("/v1/runs", json=RUN)
        await post(served, CALM)
        await seal(served)
    undocumented = []
    for method, path, statuses in STATUSES:
        if path != "/v1/events":
            place = path
            for name, value in PLACES.items():
                place = place.replace(name, value)
            body = BODIES.get((method, path), None if method in ("GET", "DELETE") else {})
            answer = await served.http.request(method, place, json=body)
            if str(answer.status_code) not in statuses.split():
                undocumented.append((method, path, answer.status_code, answer.text))
    assert undocumented == []


async def test_one_event_stream_more_than_there_may_be_is_refused_as_its_document_says(serve: Serve) -> None:
    async with serve(bounds=Bounds(subscribers=1)) as served:
        follower = await served.coordinator.events.stream(0)
        assert await anext(follower) is not None
        assert (await served.http.get("/v1/events")).status_code == 429
        document = (await served.http.get("/openapi.json")).json()
        found = document["paths"]["/v1/events"]["get"]["responses"]
        assert set(found) == set(f"{READ} 422 429".split())
        assert list(found["200"]["content"]) == ["text/event-stream"]


def test_no_text_of_a_body_may_have_a_nul_and_the_document_says_so(document: dict[str, Any]) -> None:
    bodies = {name: schema for name, schema in document["components"]["schemas"].items() if name.endswith("Body")}
    assert len(bodies) > 10
    silent = [
        (name, text) for name, schema in bodies.items() for text in _texts(schema) if re.search(text["pattern"], "a\0b")
    ]
    assert silent == []


def _texts(schema: Any) -> Iterator[dict[str, Any]]:
    """The schemas of texts within a schema, but for those that name the few texts that there may be."""
    if isinstance(schema, list):
        for one in schema:
            yield from _texts(one)
    elif isinstance(schema, dict):
        if schema.get("type") == "string" and not schema.keys() & {"enum", "const"}:
            yield {"pattern": "", **schema}
        for key, value in schema.items():
            if key not in ("examples", "example", "default"):
                yield from _texts(value)


def test_every_problem_is_of_one_schema_and_nothing_else_is(document: dict[str, Any]) -> None:
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            for status, response in operation["responses"].items():
                if status[0] == "2" or (path, status) == ("/readyz", "503"):
                    assert "application/problem+json" not in response.get("content", {}), (path, status)
                else:
                    assert response["content"] == problem, (path, status)
    schemas = document["components"]["schemas"]
    assert not {"HTTPValidationError", "ValidationError"} & schemas.keys()
    assert {"Records", "ReceiptBody", "AnnouncementBody", "Problem"} <= schemas.keys()


def test_defaults_of_parameters_are_documented(document: dict[str, Any]) -> None:
    found: dict[str, dict[str, Any]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            for one in operation.get("parameters", ()):
                if "default" in one["schema"]:
                    found.setdefault(f"{method} {path}", {})[one["name"]] = one["schema"]["default"]
    assert {where: values["limit"] for where, values in found.items() if "limit" in values} == {
        "get /v1/runs": 100,
        "get /v1/incidents": 100,
        "get /v1/syncs": 100,
        "get /v1/checks": 100,
        "get /v1/jobs": 100,
        "get /v1/events/page": 512,
        "get /v1/runs/{run}/steps": 1000,
        "get /v1/runs/{run}/alarms": 100,
        "get /v1/runs/{run}/updates": 100,
    }
    assert found["get /v1/runs/{run}/steps"]["after"] == -1
    assert found["get /v1/runs/{run}/timeline"]["points"] == 1000
    assert found["get /v1/runs"] == {"search": "", "sort": "newest", "offset": 0, "limit": 100}
    assert found["post /v1/syncs"] == {"wait": False}


def test_bodies_that_the_framework_does_not_read_are_required_and_of_their_schema(
    document: dict[str, Any],
) -> None:
    bodies = {path: methods["put"]["requestBody"] for path, methods in document["paths"].items() if "put" in methods}
    assert all(one["required"] for one in bodies.values())
    kinds = {path: set(one["content"]) for path, one in bodies.items()}
    assert kinds[f"{STEP}/parts/{{rank}}"] == {"application/json", ARROW}
    assert kinds["/v1/media/{digest}"] == {"image/png", "image/jpeg", "audio/wav", "video/mp4"}
    for path, model in (
        ("/v1/runs/{run}/updates/{update}", "AnnouncementBody"),
        ("/v1/runs/{run}/engines/{engine}/updates/{update}", "ReceiptBody"),
    ):
        schema = {"$ref": f"#/components/schemas/{model}"}
        assert bodies[path]["content"] == {"application/json": {"schema": schema}}
    headers = document["paths"]["/v1/runs"]["get"]["responses"]["200"]["headers"]
    assert headers["Total-Count"]["schema"] == {"type": "integer"}


def test_headers_that_clients_set_are_documented_and_no_other(document: dict[str, Any]) -> None:
    found = {
        (method.upper(), path): {one["name"] for one in operation.get("parameters", ()) if one["in"] == "header"}
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    key = {"Idempotency-Key"}
    assert {of: names for of, names in found.items() if names} == {
        ("POST", f"{STEP}/seal"): {"accept"},
        ("POST", "/v1/syncs"): key,
        ("POST", "/v1/jobs"): key,
        ("GET", "/v1/events"): {"Last-Event-ID"},
    }


def test_a_description_says_what_it_is_for(document: dict[str, Any]) -> None:
    assert document["info"]["title"] == "omni-rl coordinator"
    assert "PUT …/parts/{rank}" in document["info"]["description"]
    schemes = document["components"]["securitySchemes"]
    assert [schemes["session"][name] for name in ("type", "in", "name")] == ["apiKey", "cookie", "omni_rl_session"]
    assert (schemes["token"]["type"], schemes["token"]["scheme"]) == ("http", "bearer")


def json_type(wanted: pa.DataType) -> str:
    """The JSON type of a column, by what pyarrow calls its own."""
    name = str(wanted)
    for begin, kind in (("list", "array"), ("large_list", "array"), ("struct", "object"), ("string", "string")):
        if name.startswith(begin):
            return kind
    return "boolean" if name == "bool" else "number" if name in ("float", "double", "halffloat") else "integer"


def test_records_have_a_property_for_each_column_and_null_where_it_may_be_absent() -> None:
    schema = records_schema("omni_rl.step/9")
    assert schema["properties"]["schema"] == {"const": "omni_rl.step/9"}
    assert (schema["required"], schema["additionalProperties"]) == (["schema", "records"], False)
    record = schema["properties"]["records"]["items"]
    assert record["additionalProperties"] is False
    assert record["required"] == [column.name for column in COLUMNS if column.required]
    assert list(record["properties"]) == [column.name for column in COLUMNS]
    kinds = set()
    for column in COLUMNS:
        found = record["properties"][column.name]
        kind = json_type(column.type)
        kinds.add(kind)
        assert found["type"] == (kind if column.required else [kind, "null"]), column.name
        assert found["description"].startswith(column.meaning)
        assert found["description"].endswith(f" Length: {column.length}." if column.length else column.meaning)
        if kind == "array":
            assert found["items"]["type"] == json_type(column.type.value_type), column.name
    assert {"array", "string", "number", "integer"} <= kinds


def test_a_span_of_versions_is_described_field_by_field() -> None:
    spans = records_schema("v")["properties"]["records"]["items"]["properties"]["version_spans"]["items"]
    assert spans == {
        "type": "object",
        "properties": {
            "version": {"type": "string"},
            "start": {"type": "integer"},
            "end": {"type": "integer"},
            "mixed_state": {"type": "boolean"},
        },
    }
