"""The dashboard on a million steps, in Chromium: until it says something, until a chart is read, until a step shows."""

import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from playwright.sync_api import Browser, Page, sync_playwright

from omni_rl.bench.coordinator import coordinator
from omni_rl.bench.long_run import ATTEMPT, write_long_run
from omni_rl.bench.result import BenchmarkError, Goal, write_result

STEPS = 1_000_000
LOADS = 7
QUERIES = 400
EVENTS = 20
CHROMIUM = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-gpu"]
METRICS = ("logprob_abs_diff_mean", "logprob_abs_diff_p99", "logprob_abs_diff_max", "gen_kl_error")
SEEN = """(step) => new Promise((done) => {
    const look = () => {
        if (document.getElementById("fact-step")?.textContent !== step) return;
        observer.disconnect();
        requestAnimationFrame(() => done(performance.timeOrigin + performance.now()));
    };
    const observer = new MutationObserver(look);
    observer.observe(document.getElementById("head"), { childList: true, subtree: true });
})"""


def bench_dashboard(out: Path, *, steps: int = STEPS) -> Path:
    """Write `steps` steps into a ledger, open the page on them, and write `dashboard.json`.

    `paint_seconds`: from navigation, nothing cached, to state and charts drawn. `event_seconds`: from the answer to a
    seal to the frame that shows the step. `query_seconds`: a timeline of a random range, over HTTP.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_long_run(f"sqlite:///{folder / 'ledger.db'}", "long", steps)
        with coordinator(folder) as running, _browser() as browser:
            url = running.url
            figures: dict[str, Any] = {"steps": steps}
            figures |= _queries(url, steps)
            figures |= _loads(browser, url)
            figures |= _events(browser, url, steps)
    goals = [
        Goal("first meaningful paint, seconds (median)", figures["paint_seconds"]["median"], 1.0, "lower"),
        Goal("timeline query, seconds (p99)", figures["query_seconds"]["p99"], 0.05, "lower"),
        Goal("event on screen, seconds after its answer (p99)", figures["event_seconds"]["p99"], 0.2, "lower"),
        Goal("page, bytes sent", figures["page_bytes"], 150e3, "lower"),
    ]
    return write_result(out / "dashboard.json", "omni-rl bench dashboard", goals, figures)


@contextmanager
def _browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        raise BenchmarkError("Chromium is needed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM)
        yield browser
        browser.close()


def _queries(url: str, steps: int) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    seconds = []
    with httpx.Client(base_url=url, timeout=60) as http:
        for _ in range(QUERIES):
            first, last = sorted(rng.integers(0, steps, 2).tolist())
            query: dict[str, Any] = {"first": first, "last": last, "points": 800, "metric": METRICS}
            began = time.perf_counter()
            http.get("/v1/runs/long/timeline", params=query).raise_for_status()
            seconds.append(time.perf_counter() - began)
    return {"query_seconds": _spread(seconds), "queries": QUERIES}


def _loads(browser: Browser, url: str) -> dict[str, Any]:
    paints, sent, plain = [], 0, 0
    for _ in range(LOADS):
        context = browser.new_context()
        page = _opened(context.new_page(), url)
        paints.append(page.evaluate("performance.getEntriesByName('loaded')[0].startTime") / 1000)
        files = "[...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]"
        own = f"{files}.filter((one) => !one.name.includes('/v1/'))"
        sent = page.evaluate(f"{own}.reduce((sum, one) => sum + one.transferSize, 0)")
        plain = page.evaluate(f"{own}.reduce((sum, one) => sum + one.decodedBodySize, 0)")
        context.close()
    return {"paint_seconds": _spread(paints), "loads": LOADS, "page_bytes": sent, "page_bytes_unpacked": plain}


def _events(browser: Browser, url: str, steps: int) -> dict[str, Any]:
    record = {"sample": "a", "rollout_logprobs": [-0.5, -1.0], "train_logprobs": [-0.5, -1.01]}
    page = _opened(browser.new_page(), url)
    page.wait_for_function("() => document.getElementById('live').dataset.state === 'live'")
    seconds = []
    with httpx.Client(base_url=url) as http:
        for step in range(steps, steps + EVENTS):
            path = f"/v1/runs/long/attempts/{ATTEMPT}/steps/{step}"
            http.put(f"{path}/parts/0", json={"schema": "omni_rl.step/1", "records": [record]}).raise_for_status()
            page.evaluate(f"window.seen = ({SEEN})('{step:,}'); 0")
            http.post(f"{path}/seal", json={}).raise_for_status()
            acknowledged = time.time()
            seconds.append(page.evaluate("window.seen") / 1000 - acknowledged)
            time.sleep(0.4)  # a burst of steps would be one load of the page
    return {"event_seconds": _spread(seconds), "events": EVENTS}


def _opened(page: Page, url: str) -> Page:
    page.goto(f"{url}/#run=long")
    page.wait_for_function("() => performance.getEntriesByName('loaded').length > 0")
    return page


def _spread(seconds: list[float]) -> dict[str, float]:
    p99 = float(np.percentile(seconds, 99))
    return {"median": statistics.median(seconds), "p99": p99, "max": max(seconds), "min": min(seconds)}
