"""Times the dashboard on a million steps and ten thousand runs, in Chromium: until it shows something, until a chart is
read, until a step shows, until a run is found."""

import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from playwright.sync_api import Browser, Page, sync_playwright

from omni_rl_bench.coordinator import coordinator
from omni_rl_bench.long_run import ATTEMPT, METHODS, TASKS, write_long_run, write_many_runs
from omni_rl_bench.result import BenchmarkError, Goal, write_result

STEPS = 1_000_000
RUNS = 10_000
SEARCHES = 40
LOADS = 7
QUERIES = 400
EVENTS = 20
CHROMIUM = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-gpu"]
METRICS = ("logprob_abs_diff_mean", "logprob_abs_diff_p99", "logprob_abs_diff_max", "gen_kl_error")
ALARMS = 10
SEEN = """(step) => new Promise((done) => {
    const look = () => {
        if (document.getElementById("fact-step")?.textContent !== step) return;
        observer.disconnect();
        requestAnimationFrame(() => done(performance.timeOrigin + performance.now()));
    };
    const observer = new MutationObserver(look);
    observer.observe(document.getElementById("head"), { childList: true, subtree: true });
})"""


ON_TOP = """(run) => new Promise((done) => {
    const look = () => {
        if (document.querySelector(".runs tbody tr a")?.textContent !== run) return;
        observer.disconnect();
        requestAnimationFrame(() => done(performance.timeOrigin + performance.now()));
    };
    const observer = new MutationObserver(look);
    observer.observe(document.querySelector("main"), { childList: true, subtree: true, characterData: true });
})"""


def bench_dashboard(out: Path, *, steps: int = STEPS, runs: int = RUNS) -> Path:
    """Write `steps` steps and `runs` runs into a ledger, open the page on them, and write `dashboard.json`.

    `paint_seconds` is from navigation, nothing cached, to state and charts drawn. `first_screen_seconds` is the same
    for the list of all runs, and `search_seconds` from a key in its search to its rows. `event_seconds` is from the
    answer to a seal to the frame that shows the step. `query_seconds` is for a timeline of a random range, over HTTP.
    `told_seconds` is from the call that seals a step that drifts to the webhook's receipt, and `on_top_seconds` from
    there to the frame that has its run on top of the first screen.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_long_run(f"sqlite:///{folder / 'ledger.db'}", "long", steps)
        write_many_runs(f"sqlite:///{folder / 'ledger.db'}", runs)
        with _receiving() as (hook, received), coordinator(folder, webhook=hook) as running, _browser() as browser:
            url = running.url
            figures: dict[str, Any] = {"steps": steps, "runs": runs}
            figures |= _queries(url, steps)
            figures |= _loads(browser, url)
            figures |= _first_screen(browser, url)
            figures |= _events(browser, url, steps)
            figures |= _woken(browser, url, received)
    goals = [
        Goal("first meaningful paint, seconds (median)", figures["paint_seconds"]["median"], 1.0, "lower"),
        Goal("first screen of 10,000 runs, seconds (median)", figures["first_screen_seconds"]["median"], 1.0, "lower"),
        Goal("search in 10,000 runs, seconds (median)", figures["search_seconds"]["median"], 0.1, "lower"),
        Goal("timeline query, seconds (p99)", figures["query_seconds"]["p99"], 0.05, "lower"),
        Goal("event on screen, seconds after its answer (p99)", figures["event_seconds"]["p99"], 0.2, "lower"),
        Goal(
            "webhook received, seconds after the seal was asked for (max)", figures["told_seconds"]["max"], 5.0, "lower"
        ),
        Goal(
            "run on top of the first screen, seconds after that (max)", figures["on_top_seconds"]["max"], 1.0, "lower"
        ),
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


def _first_screen(browser: Browser, url: str) -> dict[str, Any]:
    paints = []
    for _ in range(LOADS):
        context = browser.new_context()
        page = context.new_page()
        page.goto(url)
        page.wait_for_function("() => performance.getEntriesByName('loaded').length > 0")
        page.get_by_role("region", name="Runs", exact=True).locator("tbody tr").first.wait_for()
        paints.append(page.evaluate("performance.getEntriesByName('loaded')[0].startTime") / 1000)
        context.close()
    page = browser.new_page()
    page.goto(url)
    box = page.get_by_label("Search runs")
    noise = np.random.default_rng(2)
    seconds = []
    for number in range(SEARCHES):
        box.fill(f"{noise.choice(TASKS)}-{noise.choice(METHODS)}-{noise.integers(100):02d}" if number % 2 else "igit")
        page.wait_for_function(f"() => performance.getEntriesByName('search').length > {number}")
        seconds.append(page.evaluate("performance.getEntriesByName('search').at(-1).duration") / 1000)
    page.close()
    return {"first_screen_seconds": _spread(paints), "search_seconds": _spread(seconds), "searches": SEARCHES}


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


@contextmanager
def _receiving() -> Iterator[tuple[str, list[float]]]:
    """Yield the address of a receiver of webhooks, and the times when it received one, in Unix seconds."""
    received: list[float] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            received.append(time.time())
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
            return None

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _woken(browser: Browser, url: str, received: list[float]) -> dict[str, Any]:
    record = {"sample": "a", "rollout_logprobs": [-0.5] * 16, "train_logprobs": [-5.5] * 16}
    page = browser.new_page()
    page.goto(url)
    page.wait_for_function("() => document.getElementById('live').dataset.state === 'live'")
    told, on_top = [], []
    with httpx.Client(base_url=url, timeout=60) as http:
        for number in range(ALARMS):
            # Of equally urgent runs the newest is on top.
            run = f"parted-{number}"
            http.post("/v1/runs", json={"run": run, "model": "made", "dtype": "bfloat16"}).raise_for_status()
            path = f"/v1/runs/{run}/attempts/1/steps/0"
            http.put(f"{path}/parts/0", json={"schema": "omni_rl.step/1", "records": [record]}).raise_for_status()
            page.evaluate(f"window.seen = ({ON_TOP})('{run}'); 0")
            before, asked = len(received), time.time()
            http.post(f"{path}/seal", json={}).raise_for_status()
            shown = page.evaluate("window.seen") / 1000
            while len(received) == before:
                time.sleep(0.01)
            told.append(received[before] - asked)
            on_top.append(max(0.0, shown - received[before]))
            time.sleep(0.4)  # a burst of alarms would be one load of the page
    page.close()
    return {"told_seconds": _spread(told), "on_top_seconds": _spread(on_top), "alarms": ALARMS}


def _opened(page: Page, url: str) -> Page:
    page.goto(f"{url}/#run=long")
    page.wait_for_function("() => performance.getEntriesByName('loaded').length > 0")
    return page


def _spread(seconds: list[float]) -> dict[str, float]:
    p99 = float(np.percentile(seconds, 99))
    return {"median": statistics.median(seconds), "p99": p99, "max": max(seconds), "min": min(seconds)}
