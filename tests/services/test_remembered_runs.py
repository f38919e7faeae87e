"""Which runs are in memory, and the answers of small routes: media, the dashboard's files, sessions, steps."""

import asyncio
import gzip
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omni_rl_services.coordinator import allocator
from omni_rl_services.coordinator.memory import MOST, available, budget
from omni_rl_services.coordinator.repeating import repeat
from omni_rl_services.coordinator.roster import Roster
from omni_rl_services.coordinator.routes.dashboard import ASSETS, Asset
from omni_rl_services.coordinator.routes.media import FromFile

from omni_rl.consistency.limits import Severity
from omni_rl.consistency.policy import Drift
from omni_rl.errors import LedgerError, NotFoundError
from omni_rl.ledger.types import Run
from tests.services.asgi import call, scope
from tests.services.conftest import Serve, Served
from tests.services.posted import CALM, RUN, post, seal
from tests.services.test_media_headers import png
from tests.services.test_run_lines import live

pytestmark = pytest.mark.anyio
CONFIG = live().body.model_dump(mode="json")


def row(number: int) -> Run:
    return Run(f"r{number}", float(number), {**CONFIG, "run": f"r{number}"})


class Rows:
    """A ledger of runs."""

    def __init__(self, count: int) -> None:
        self.rows = {f"r{number}": row(number) for number in range(count)}
        self.asked: list[Any] = []

    async def run(self, name: str) -> Run:
        self.asked.append(name)
        if name not in self.rows:
            raise NotFoundError("no row")
        return self.rows[name]

    async def to_remember(self, most: int) -> list[Run]:
        self.asked.append(most)
        return list(self.rows.values())[:most]


def roster(count: int = 0) -> tuple[Roster, Rows]:
    rows: Any = Rows(count)
    return Roster(rows, 3, 600.0), rows


async def test_256_runs_are_in_memory_and_the_hundred_newest_listed() -> None:
    runs, rows = roster(256)
    await runs.open()
    assert rows.asked == [256]
    assert len(list(runs)) == 256
    assert [run.name for run in runs.newest()] == [f"r{number}" for number in range(255, 155, -1)]
    runs.add(row(256))
    names = [run.name for run in runs]
    assert (len(names), names[0], names[-1]) == (256, "r1", "r256"), "the one that was used longest ago has left"


async def test_a_run_that_is_asked_for_stays_longer_and_one_of_the_newest_for_good() -> None:
    runs, rows = roster(300)
    for number in range(255, -1, -1):  # the newest are used longest ago
        runs.add(row(number))
    first = await runs.one("r155")
    assert rows.asked == []
    runs.add(Run("old-1", -1.0, {**CONFIG, "run": "old-1"}))
    runs.add(Run("old-2", -2.0, {**CONFIG, "run": "old-2"}))
    names = {run.name for run in runs}
    assert len(names) == 256
    assert {f"r{number}" for number in range(156, 256)} <= names
    assert not {"r154", "r153"} & names
    assert await runs.one("r155") is first
    again = await runs.one("r154")
    assert (again.name, rows.asked) == ("r154", ["r154"])
    assert await runs.one("r154") is again
    with pytest.raises(NotFoundError, match="there is no run 'nobody'; make it with POST /v1/runs"):
        await runs.one("nobody")


async def test_a_run_that_is_not_at_rest_never_leaves() -> None:
    runs, _ = roster()
    busy = runs.add(row(0))
    busy.drift = Drift(Severity.PAUSE, gate="halted")
    for number in range(1, 300):
        runs.add(row(number))
    assert next(run.name for run in runs) == "r0"
    assert runs.add(row(0)) is busy
    busy.drift = Drift()
    for number in range(300, 560):
        runs.add(row(number))
    assert "r0" not in [run.name for run in runs]


def test_a_row_that_is_read_is_put_into_no_memory() -> None:
    runs, _ = roster()
    found = runs.read(row(7))
    assert (found.name, found.policy.settle, found.silent_after) == ("r7", 3, 600.0)
    assert list(runs) == []


@pytest.mark.parametrize(
    ("files", "most"),
    [
        (["1000000\n"], 1_000_000),
        (["max\n"], None),
        (["5000000", "1000000"], 1_000_000),
        ([" 4096 "], 4096),
        ([], None),
    ],
)
def test_the_memory_is_the_least_of_the_machine_and_of_its_control_groups(
    tmp_path: Path, files: list[str], most: int | None
) -> None:
    paths = [tmp_path / "missing"]
    for number, text in enumerate(files):
        paths.append(tmp_path / str(number))
        paths[-1].write_text(text)
    pages = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    machine = int(pages["MemTotal"].split()[0]) * 1024
    assert available(paths) == (most or pytest.approx(machine, rel=0.01))


def test_a_budget_is_what_is_asked_for_or_three_quarters_of_what_there_is() -> None:
    assert budget(1000).whole == 1000
    assert budget(None).whole == min(16 * 2**30, int(0.75 * available()))
    assert MOST == 16 * 2**30


async def test_free_memory_is_returned_every_twenty_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    returned, waits = list[int](), list[float]()

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) > 2:
            raise asyncio.CancelledError

    loop = SimpleNamespace(sleep=sleep, to_thread=asyncio.to_thread)
    monkeypatch.setattr(allocator, "asyncio", loop)
    monkeypatch.setattr(allocator, "return_free_memory", lambda: returned.append(1))
    with pytest.raises(asyncio.CancelledError):
        await allocator.keep_trimmed()
    assert (waits, returned) == ([20.0] * 3, [1, 1])


async def test_what_is_repeated_waits_first_and_tells_of_each_failure(caplog: pytest.LogCaptureFixture) -> None:
    failures = [LedgerError("the disk is full"), KeyError("rollout-0")]

    async def work() -> None:
        if not failures:
            raise asyncio.CancelledError
        raise failures.pop(0)

    with pytest.raises(asyncio.CancelledError):
        await repeat(work, 0.001, "the look")
    first, second = caplog.records
    assert (first.getMessage(), first.exc_info) == ("the look failed, again in 0 s: the disk is full", None)
    assert (second.getMessage(), bool(second.exc_info)) == ("the look failed, again in 0 s", True)


async def test_an_item_is_sent_piece_by_piece_from_its_begin_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omni_rl_services.coordinator.routes.media.PIECE", 50)
    for more, pieces in ((0, [24]), (26, [50]), (27, [50, 1]), (126, [50, 50, 50])):
        content = png(3, 3) + bytes(range(more))
        (tmp_path / "item").write_bytes(content)
        file = (tmp_path / "item").open("rb")
        start, *sent = await call(FromFile(file, {"X-More": "yes"}), scope())
        headers = dict(start["headers"])
        assert (headers[b"content-type"], headers[b"x-more"]) == (b"image/png", b"yes")
        assert (start["status"], headers[b"content-length"]) == (200, str(len(content)).encode())
        assert [len(one["body"]) for one in sent] == pieces
        assert b"".join(one["body"] for one in sent) == content
        assert [one["more_body"] for one in sent] == [True] * (len(pieces) - 1) + [False]
        assert file.closed


async def test_a_file_of_the_page_changes_its_tag_with_its_content(tmp_path: Path) -> None:
    (tmp_path / "a.js").write_text("let a = 1;")
    first = Asset.of(tmp_path / "a.js")
    assert (first.media_type, first.plain) == ("text/javascript; charset=utf-8", b"let a = 1;")
    assert gzip.decompress(first.packed) == first.plain
    assert Asset.of(tmp_path / "a.js") == first, "packed alike at every start"
    (tmp_path / "a.js").write_text("let a = 2;")
    assert Asset.of(tmp_path / "a.js").tag != first.tag
    assert first.tag.strip('"') != first.tag
    assert {Path(name).suffix for name in ASSETS} <= {".html", ".css", ".js", ".svg"}
    assert "index.html" in ASSETS


async def test_a_file_is_sent_as_whoever_asks_can_read_it(served: Served) -> None:
    for encoding, packed in (("gzip", True), ("br, gzip;q=0.5", True), ("br", False), ("identity", False)):
        answer = await served.http.get("/", headers={"Accept-Encoding": encoding})
        assert (answer.headers.get("content-encoding") == "gzip") is packed
        assert (answer.headers["cache-control"], answer.headers["vary"]) == ("no-cache", "Accept-Encoding")
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
    known = await served.http.get("/", headers={"If-None-Match": ASSETS["index.html"].tag})
    assert (known.status_code, known.headers["etag"]) == (304, ASSETS["index.html"].tag)
    assert (await served.http.get("/", headers={"If-None-Match": '"other"'})).status_code == 200
    missing = await served.http.get("/dashboard/none.js")
    assert missing.json()["detail"] == "GET /dashboard/none.js: the dashboard has no such file"


async def test_steps_are_of_the_latest_attempt_unless_another_is_asked_for(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    assert (await served.http.get("/v1/runs/digits/steps")).json() == []
    empty = (await served.http.get("/v1/runs/digits/timeline")).json()
    assert (empty["kind"], empty["first"], empty["high"]) == ("overall", [], {})
    for attempt, step in ((1, 3), (2, 4), (2, 5)):
        at = f"/v1/runs/digits/attempts/{attempt}/steps/{step}"
        await served.http.put(f"{at}/parts/0", json={"schema": "omni_rl.step/1", "records": CALM})
        await served.http.post(f"{at}/seal", json={})

    async def numbers(query: str) -> list[int]:
        return [one["step"] for one in (await served.http.get(f"/v1/runs/digits/steps{query}")).json()]

    assert await numbers("") == await numbers("?attempt=2") == [4, 5]
    assert await numbers("?attempt=1") == [3]
    assert await numbers("?limit=1") == [4]
    assert await numbers("?after=4") == [5]
    assert await numbers("?points=9") == [4, 5]
    assert await numbers("?points=9&after=4") == [5]
    assert await numbers("?points=9&last=4") == [4]
    found = (await served.http.get("/v1/runs/digits/timeline?attempt=1&metric=ess")).json()
    assert (found["attempt"], found["first"], list(found["high"])) == (1, [3], ["ess"])
    assert len((await served.http.get("/v1/runs/digits/timeline")).json()["high"]) > 10
    unknown = await served.http.get("/v1/runs/digits/timeline?kind=poetry")
    assert (unknown.status_code, "has no prompts of kind poetry" in unknown.json()["detail"]) == (404, True)


async def test_a_sample_is_found_by_its_name_and_its_rank(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    far = [{**CALM[0], "train_logprobs": [value + 1 for value in CALM[0]["train_logprobs"]]}]
    await post(served, CALM, rank=0)
    await post(served, far, rank=1)
    await seal(served)
    at = "/v1/runs/digits/attempts/1/steps/12/samples/a"
    assert (await served.http.get(at)).json()["rank"] == 1, "the one that is furthest apart"
    for rank in (0, 1):
        assert (await served.http.get(f"{at}?rank={rank}")).json()["rank"] == rank
    assert (await served.http.get(f"{at}?rank=2")).status_code == 404


async def test_a_session_ends_with_its_logout_and_the_cookie_is_taken_back(serve: Serve) -> None:
    async with serve() as served:
        for cookies in ({}, {"omni_rl_session": "any"}):
            answer = await served.http.delete(
                "/v1/session", headers={"Cookie": "; ".join(map("=".join, cookies.items()))}
            )
            assert answer.status_code == 204
            cookie = answer.headers["set-cookie"]
            assert 'omni_rl_session=""' in cookie
            assert "Max-Age=0" in cookie
            assert "HttpOnly" in cookie
            assert "SameSite=strict" in cookie
