"""Names and origins in a request's headers: what a browser on another site's page may do."""

import pytest

from tests.services.conftest import Serve, Served, bearer, tokens

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://localhost"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "["}, 403),
        ({"Origin": "http://["}, 403),
        ({"Host": "localhost:8400", "Origin": "http://localhost:8400"}, 200),
        ({"Host": "[::1]:8400"}, 200),
    ],
)
async def test_another_sites_page_can_do_nothing(served: Served, headers: dict[str, str], status: int) -> None:
    answer = await served.http.post("/v1/syncs?wait=true", json={}, headers=headers)
    assert answer.status_code == status, answer.text


async def test_a_name_that_is_none_is_refused_with_tokens_too(serve: Serve) -> None:
    known, entries = tokens()
    async with serve(tokens=entries) as served:
        headers = {**bearer(known["admin"]), "Origin": "http://["}
        answer = await served.http.post("/v1/syncs?wait=true", json={}, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert "content-security-policy" in answer.headers


async def test_a_rebound_name_may_not_even_read(served: Served) -> None:
    answer = await served.http.get("/v1/state", headers={"Host": "rebound.example"})
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


async def test_with_tokens_any_name_will_do(serve: Serve) -> None:
    known, entries = tokens()
    async with serve(tokens=entries) as served:
        headers = {**bearer(known["read"]), "Host": "omni.example"}
        assert (await served.http.get("/v1/state", headers=headers)).status_code == 200
