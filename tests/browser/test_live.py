"""What the page does while things happen: steps that come in, lost connections, hostile text, long runs."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from omni_rl_services.coordinator.auth import new_token
from omni_rl_services.coordinator.settings import TokenEntry
from playwright.sync_api import BrowserContext, Page, expect

from omni_rl.api.state import Scope
from omni_rl_bench.long_run import SPIKE, write_long_run
from tests.browser.conftest import Open
from tests.browser.held import after_answers, hold_next
from tests.browser.recorded import STEPS, drifted, post_recorded, post_step, records_of
from tests.services.fake_bridge import FakeBridge
from tests.services.live import live

pytestmark = pytest.mark.slow
HOSTILE = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"


def test_a_step_is_on_screen_as_it_is_sealed(tmp_path: Path, opened: Open) -> None:
    with live(tmp_path) as url, httpx.Client(base_url=url) as http:
        post_recorded(url)
        page = opened(url, run="recorded")
        expect(page.locator("#live")).to_have_text("live")
        expect(page.locator("#badge")).to_contain_text("OK")
        post_step(http, "recorded", STEPS, drifted(records_of(0), 0.9))
        expect(page.locator("#badge")).to_contain_text("PAUSE")
        expect(page.locator("#fact-step")).to_have_text(str(STEPS))
        expect(page.locator("#in-view")).to_contain_text(f"to {STEPS}")


def test_what_happened_while_the_coordinator_was_away_is_caught_up_with(tmp_path: Path, opened: Open) -> None:
    with live(tmp_path) as url:
        post_recorded(url)
        port = int(url.rsplit(":", 1)[1])
        page = opened(url, run="recorded")
        expect(page.locator("#live")).to_have_text("live")
        expect(page.locator("#badge")).to_contain_text("OK")
    expect(page.locator("#live")).to_contain_text("connection lost")
    expect(page.locator("#badge")).to_contain_text("DISCONNECTED")
    expect(page.locator("#badge")).to_contain_text("OK")
    expect(page.locator("#badge")).to_have_css("border-style", "dashed")
    with live(tmp_path, port=port) as url, httpx.Client(base_url=url) as http:
        post_step(http, "recorded", STEPS, drifted(records_of(0), 0.9))
        expect(page.locator("#live")).to_have_text("live", timeout=15_000)
        expect(page.locator("#badge")).to_contain_text("PAUSE")
        page.close()


def test_an_error_of_a_load_that_is_over_leaves_the_newer_page(recorded: str, opened: Open) -> None:
    page = opened(recorded, run="recorded", view="syncs")
    expect(page.locator("main")).to_contain_text("No sync yet")
    asked = hold_next(page, "**/v1/syncs?limit=20")  # of the head
    with page.expect_response("**/updates?limit=200"):  # of the view: it has what it asked for, the head waits
        page.keyboard.press("r")
    late = asked()
    after_answers(page)
    page.keyboard.press("2")
    layers = page.get_by_role("table", name="Router flips by layer and step")
    expect(layers).to_be_visible()
    late.fulfill(status=503, json={"title": "The ledger is busy", "detail": "ask again"})
    after_answers(page)
    assert layers.is_visible()
    assert page.locator("main .error").count() == 0


@pytest.mark.parametrize("fault", ["superseded", "lost"])
def test_a_log_that_does_not_come_leaves_the_one_that_is_read(tmp_path: Path, opened: Open, fault: str) -> None:
    lines = "".join(f"step {step} of 400\n" for step in range(400))
    with live(tmp_path) as url, httpx.Client(base_url=url, timeout=30) as http:
        body = {"kind": "grpo", "parameters": {"run": "fresh"}}
        job = http.post("/v1/jobs", json=body).raise_for_status().json()["job"]
        page = opened(url, view="jobs", job=job)
        page.route("**/logs", lambda route: route.fulfill(body=lines, content_type="text/plain"))
        log = page.get_by_role("region", name="Log")
        page.keyboard.press("r")
        expect(log).to_contain_text("step 399 of 400")
        log.evaluate("(log) => { log.scrollTop = 300; }")
        if fault == "superseded":
            asked = hold_next(page, "**/logs")
            page.keyboard.press("r")
            asked()
        else:
            page.route("**/logs", lambda route: route.abort(), times=1)
            page.keyboard.press("r")
            expect(page.locator("#live")).to_contain_text("connection lost")
        page.evaluate("performance.clearMarks()")
        page.keyboard.press("r")
        page.wait_for_function("() => performance.getEntriesByName('loaded').length > 0")
        expect(log).to_contain_text("step 399 of 400")
        assert log.evaluate("(log) => log.scrollTop") == 300


def test_what_a_model_says_is_only_ever_text(tmp_path: Path, opened: Open) -> None:
    record: dict[str, Any] = {
        "sample": f"p/{HOSTILE}",
        "kind": "text",
        "prompt_tokens": 1,
        "ids": [1, 2],
        "rollout_logprobs": [-0.5, -0.5],
        "train_logprobs": [-0.5, -0.6],
        "prompt_text": HOSTILE,
        "token_texts": [HOSTILE, "x" * 1_000_000],
    }
    with live(tmp_path) as url, httpx.Client(base_url=url, timeout=30) as http:
        http.post("/v1/runs", json={"run": "hostile", "model": HOSTILE, "dtype": "bfloat16"}).raise_for_status()
        post_step(http, "hostile", 0, [record])
        page = opened(url, view="what")
        tokens = page.locator(".strip > span")
        expect(tokens).to_have_count(2)
        assert tokens.first.inner_text() == HOSTILE
        expect(tokens.nth(1)).to_contain_text("(1,000,000 characters)")
        assert len(page.locator("body").inner_text()) < 20_000
        expect(page.locator(".prompt")).to_have_text(HOSTILE)
        assert page.evaluate("window.hacked") is None
        assert page.locator("main script, main img").count() == 0


def test_what_a_checkpoint_calls_its_modules_is_only_ever_text(tmp_path: Path, opened: Open) -> None:
    bridge = FakeBridge(renamed={"norm": HOSTILE, "logits": "=1+1", "layers.0.mixer": "__proto__"})
    with live(tmp_path, bridge) as url, httpx.Client(base_url=url, timeout=30) as http:
        post_recorded(url, steps=1)
        http.post("/v1/checks", json={"localise": True}).raise_for_status()
        page = opened(url, view="where")
        rows = page.get_by_role("table", name="Difference over its band").get_by_role("rowheader")
        expect(rows).to_have_text(["embeddings", "__proto__", "layers.1.mixer", HOSTILE, "=1+1"])
        with page.expect_download() as download:
            page.get_by_role("button", name="modules as CSV").click()
        assert ",'=1+1," in Path(download.value.path()).read_text()
        page.goto(f"{url}/#view=why")
        expect(page.get_by_role("heading", name="Check 1 of the probe")).to_be_visible()
        page.locator("summary", has_text="Table").last.click()
        expect(page.get_by_role("region", name="Difference by module, as a table")).to_contain_text(HOSTILE)
        assert page.evaluate("window.hacked") is None
        assert page.locator("main script, main img").count() == 0


def test_a_check_that_somebody_else_made_is_seen(tmp_path: Path, opened: Open) -> None:
    with live(tmp_path) as url, httpx.Client(base_url=url, timeout=30) as http:
        post_recorded(url, steps=1)
        page = opened(url, view="where")
        expect(page.locator("main")).to_contain_text("omni-rl check --localise")
        expect(page.locator("#live")).to_have_text("live")
        http.post("/v1/checks", json={"localise": True}).raise_for_status()
        expect(page.get_by_role("table", name="Difference over its band")).to_be_visible()
        page.get_by_role("button", name="Compare every module now").click()
        page.get_by_role("button", name="Check", exact=True).click()
        expect(page.get_by_role("link", name="#2 probe")).to_be_visible()


def test_its_policy_lets_no_inline_script_run(recorded: str, context: BrowserContext) -> None:
    page = context.new_page()
    page.goto(recorded)
    expect(page.locator("#badge")).to_contain_text("OK")
    refused = page.evaluate(
        """() => new Promise((done) => {
            document.addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective));
            const script = document.createElement("script");
            script.textContent = "window.hacked = 1";
            document.body.append(script);
        })"""
    )
    assert refused.startswith("script-src")
    assert page.evaluate("window.hacked") is None


def test_a_token_becomes_a_cookie_that_scripts_cannot_read(tmp_path: Path, opened: Open) -> None:
    token, digest = new_token()
    entry = TokenEntry(name="ann", scope=Scope.READ, sha256=digest)
    with live(tmp_path, tokens=(entry,)) as url:
        page = opened(url)
        page.get_by_label("Token").fill("wrong")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_contain_text("does not know that token")
        page.get_by_label("Token").fill(token)
        page.get_by_role("button", name="Log in").click()
        expect(page.locator("#badge")).to_contain_text("NO RUN")
        (cookie,) = page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        assert page.evaluate("document.cookie") == ""
        page.goto(f"{url}/#view=syncs")
        expect(page.get_by_role("button", name="Sync weights")).to_be_disabled()


def test_no_spike_of_a_hundred_thousand_steps_is_lost(tmp_path: Path, opened: Open) -> None:
    write_long_run(f"sqlite:///{tmp_path / 'ledger.db'}", "long", 100_000)
    with live(tmp_path) as url:
        page = opened(url, run="long", kind="overall")
        expect(page.locator("#in-view")).to_contain_text("steps 0 to 99,999")
        assert _greatest(page, "logprob_abs_diff_mean greatest") == SPIKE
        figures = page.get_by_role("region", name="Reward and training")
        figures.locator("summary", has_text="Table").first.click()
        expect(figures.locator("details[open] tbody td").first).to_have_text("0")
        page.goto(f"{url}/#run=long&kind=overall&x=49990-50010")
        expect(page.locator("#in-view")).to_have_text("steps 49,990 to 50,010")
        assert _greatest(page, "logprob_abs_diff_mean greatest") == SPIKE


def _greatest(page: Page, column: str) -> float:
    """Of a chart's CSV: it has every bucket, where the table on screen has the first 500."""
    with page.expect_download() as download:
        page.get_by_role("button", name="logprob_abs_diff_mean as CSV").click()
    lines = Path(download.value.path()).read_text().splitlines()
    at = lines[0].split(",").index(column)
    return max(float(line.split(",")[at]) for line in lines[1:])
