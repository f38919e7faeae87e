"""Every error as a problem: its status, its title, the headers that go with it, and how much of it is told."""

import json
import logging
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from omni_rl_services.coordinator.problems import SyncIsRunningError, add_handlers, documented, respond, status_of
from pydantic import BaseModel, field_validator
from starlette.exceptions import HTTPException

from omni_rl import errors
from omni_rl.errors import OmniRLError

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("status", "kinds"),
    [
        (401, [errors.UnauthenticatedError]),
        (403, [errors.ForbiddenError]),
        (404, [errors.NotFoundError]),
        (408, [errors.TooSlowError]),
        (
            409,
            [
                errors.ConflictError,
                errors.IdempotencyError,
                errors.SyncRunningError,
                errors.WeightsMovedError,
                errors.SyncRolledBackError,
                errors.NonFiniteWeightsError,
                errors.FencedError,
            ],
        ),
        (413, [errors.TooLargeError]),
        (415, [errors.UnsupportedMediaTypeError]),
        (
            422,
            [
                errors.InvalidRequestError,
                errors.RecordError,
                errors.ConfigError,
                errors.MediaError,
                errors.PromptError,
                errors.CheckpointError,
                errors.SamplingError,
            ],
        ),
        (429, [errors.TooManyError]),
        (500, [errors.OmniRLError, errors.GradientError, errors.BridgeProtocolError]),
        (
            503,
            [
                errors.RayUnavailableError,
                errors.LedgerError,
                errors.TakenOverError,
                errors.MediaStoreError,
                errors.JournalError,
                errors.SyncUndecidedError,
                errors.QuarantinedError,
                errors.EngineDeadError,
                errors.ReplicaDeadError,
                errors.TrainerDeadError,
                errors.TrainerStoppedError,
                errors.ReplicaSilentError,
                errors.ReplicaStoppedError,
                errors.SlabError,
                errors.SlabFullError,
                errors.SourceError,
                errors.WeightUpdateError,
            ],
        ),
    ],
)
def test_the_most_specific_class_of_an_error_decides_its_status(status: int, kinds: list[type[OmniRLError]]) -> None:
    assert {kind.__name__: status_of(kind("why")) for kind in kinds} == {kind.__name__: status for kind in kinds}


def test_a_problem_has_the_code_and_the_first_paragraph_of_its_class() -> None:
    class LongError(OmniRLError):
        """The first
        paragraph.

        The second.
        """

        code = "long"

    answer = respond(LongError, 422, "why", {"X-A": "b"}, sync="s")
    assert json.loads(bytes(answer.body)) == {
        "type": "urn:omni-rl:long",
        "title": "The first paragraph.",
        "status": 422,
        "detail": "why",
        "code": "long",
        "sync": "s",
    }
    assert (answer.status_code, answer.media_type) == (422, "application/problem+json")
    assert answer.headers["x-a"] == "b"
    assert json.loads(bytes(respond(LongError, 500, "why").body))["title"] == "The coordinator failed."


@pytest.mark.parametrize(("length", "kept"), [(10, 10), (4096, 4096), (4097, 4096), (100_000, 4096)])
def test_a_detail_is_cut_after_4096_characters(length: int, kept: int) -> None:
    assert len(json.loads(bytes(respond(OmniRLError, 422, "x" * length).body))["detail"]) == kept


class Said(BaseModel):
    values: dict[str, int] = {}
    text: str = ""

    @field_validator("text")
    @classmethod
    def _no(cls, text: str) -> str:
        raise ValueError(text)


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI()
    add_handlers(app)

    @app.get("/raise/{name}")
    async def raising(name: str) -> None:
        raise getattr(errors, name)("why not")

    @app.get("/running")
    async def running() -> None:
        raise SyncIsRunningError("abc")

    @app.get("/status/{status}")
    async def status(status: int) -> None:
        raise HTTPException(status, "words", {"X-More": "yes"})

    @app.post("/body")
    async def body(said: Said) -> None:
        return None

    return app


async def ask(app: FastAPI, method: str, path: str, **more: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        return await http.request(method, path, **more)


@pytest.mark.parametrize(
    ("name", "status", "header", "value"),
    [
        ("UnauthenticatedError", 401, "www-authenticate", "Bearer"),
        ("TooManyError", 429, "retry-after", "1"),
        ("LedgerError", 503, "retry-after", "5"),
        ("NotFoundError", 404, "retry-after", None),
        ("ConflictError", 409, "www-authenticate", None),
    ],
)
async def test_an_error_says_when_to_come_back_and_with_what(
    app: FastAPI, name: str, status: int, header: str, value: str | None
) -> None:
    answer = await ask(app, "GET", f"/raise/{name}")
    assert (answer.status_code, answer.json()["status"], answer.headers.get(header)) == (status, status, value)
    assert answer.json()["code"] == getattr(errors, name).code
    assert answer.json()["detail"] == "why not"
    assert "fields" not in answer.json()


@pytest.mark.parametrize(
    ("name", "logged"), [("GradientError", True), ("LedgerError", False), ("NotFoundError", False)]
)
async def test_only_a_fault_of_our_own_is_in_the_log(
    app: FastAPI, caplog: pytest.LogCaptureFixture, name: str, logged: bool
) -> None:
    await ask(app, "GET", f"/raise/{name}")
    faults = [one for one in caplog.records if one.levelno >= logging.ERROR]
    assert [one.getMessage() for one in faults] == [f"GET /raise/{name} failed: why not"] * logged
    assert all(one.exc_info for one in faults)


async def test_a_sync_under_way_is_named_in_its_refusal(app: FastAPI) -> None:
    answer = await ask(app, "GET", "/running")
    assert (answer.status_code, answer.headers["location"]) == (409, "/v1/syncs/abc")
    assert (answer.json()["sync"], answer.json()["code"]) == ("abc", "sync_running")
    assert answer.json()["detail"] == "sync abc is under way; wait for it: GET /v1/syncs/abc"


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        (400, 422, "invalid_request"),
        (401, 401, "unauthenticated"),
        (403, 403, "forbidden"),
        (404, 404, "not_found"),
        (405, 405, "invalid_request"),
        (408, 408, "too_slow"),
        (413, 413, "too_large"),
        (415, 415, "unsupported_media_type"),
        (418, 418, "invalid_request"),
    ],
)
async def test_what_the_framework_refuses_is_a_problem_too(app: FastAPI, asked: int, status: int, code: str) -> None:
    answer = await ask(app, "GET", f"/status/{asked}")
    assert (answer.status_code, answer.json()["status"], answer.json()["code"]) == (status, status, code)
    assert answer.json()["detail"] == f"GET /status/{asked}: words"
    assert answer.headers["x-more"] == "yes"


@pytest.mark.parametrize(("bad", "told", "named"), [(1, 1, 1), (5, 5, 5), (6, 6, 5), (64, 64, 5), (65, 64, 5)])
async def test_64_bad_values_are_told_and_five_of_them_in_the_detail(
    app: FastAPI, bad: int, told: int, named: int
) -> None:
    answer = await ask(app, "POST", "/body", json={"values": {f"k{n}": "x" for n in range(bad)}})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    fields = answer.json()["fields"]
    assert [one["where"] for one in fields] == [f"body.values.k{n}" for n in range(told)]
    assert answer.json()["detail"] == "; ".join(f"{one['where']}: {one['message']}" for one in fields[:named])


@pytest.mark.parametrize(("length", "kept"), [(244, 256), (245, 256), (1000, 256), (10, 22)])
async def test_a_path_to_a_value_is_cut_after_256_characters(app: FastAPI, length: int, kept: int) -> None:
    answer = await ask(app, "POST", "/body", json={"values": {"k" * length: "x"}})
    assert len(answer.json()["fields"][0]["where"]) == kept


@pytest.mark.parametrize("over", [0, 1, 5000])
async def test_a_message_about_a_value_is_cut_after_4096_characters(app: FastAPI, over: int) -> None:
    """Pydantic says `Value error, ` before it."""
    answer = await ask(app, "POST", "/body", json={"text": "x" * (4096 - 13 + over)})
    assert len(answer.json()["fields"][0]["message"]) == 4096


def test_a_route_with_a_body_documents_that_it_may_be_slow_or_too_much() -> None:
    assert list(documented(401, 413)) == [401, 408, 413, 429]
    assert list(documented(413, 429)) == [408, 413, 429]
    assert list(documented(404, 401)) == [404, 401]
    assert all(one["description"] for one in documented(401, 403, 404, 405, 409, 413, 415, 422, 503).values())
