"""The pictures in docs/pictures: the dashboard taken with Debian's Chromium, once with a run of the demo in it, once
with a service behind it whose policies were checked.

Plays the demo in bfloat16 and brings a service up (seven minutes); with `--url` it takes a coordinator that is up
already, for the demo's pictures alone.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from playwright.sync_api import Page, sync_playwright

from omni_rl.service.state import ServiceState

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"
OMNI_RL = str(Path(sys.executable).parent / "omni-rl")
ADDRESS = re.compile(r"the dashboard stays at (http://\S+?)/#run=(\S+)")
SETTLE_MS = 1500  # charts, media and video frames
WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 400, "height": 800}
TALL = {"width": 1280, "height": 1200}
RUN, STEPS = "digits", 3
JOB = (f"run={RUN}", f"steps={STEPS}", "dtype=bfloat16", "prompts=8", "group=4", "max_tokens=16")


class Shot(NamedTuple):
    """A picture to take. `panel` is the panel with this text in its heading; without it, the picture is what is on
    screen first."""

    name: str
    view: str
    theme: str
    size: dict[str, int]
    panel: str | None = None


OF_DEMO = [
    Shot("runs-light", "runs", "light", WIDE),
    Shot("timeline-light", "timeline", "light", WIDE),
    Shot("timeline-dark", "timeline", "dark", WIDE),
    Shot("where-light", "where", "light", WIDE),
    Shot("what-dark", "what", "dark", TALL),
    Shot("syncs-light", "syncs", "light", WIDE),
    Shot("timeline-narrow", "timeline", "light", NARROW),
]
OF_SERVICE = [
    Shot("profiles-dark", "where", "dark", WIDE, "Profiles"),
    Shot("check-light", "why", "light", WIDE, "Check 3"),
    Shot("legs-narrow", "what", "dark", NARROW, "Legs"),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="a coordinator that is up, with the demo's run in it")
    url = parser.parse_args().url
    if url is not None:
        take(OF_DEMO, url.rstrip("/"), "")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        with demo(Path(folder) / "demo") as (address, run):
            take(OF_DEMO, address, run)
        with service(Path(folder) / "up") as (address, token):
            take(OF_SERVICE, address, RUN, token)
    return 0


@contextmanager
def demo(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the address of a demo that is over and stays up, and its run."""
    # A shell's background job ignores this signal, and so would the demo, which must end by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    command = [OMNI_RL, "demo", "--serve", "--dtype", "bfloat16", "--out", str(folder)]
    any_port = {**os.environ, "OMNI_RL_DEMO__PORT": "0"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=any_port)
    try:
        assert process.stdout is not None, "it was asked for"
        for line in process.stdout:
            print(line, end="")
            if found := ADDRESS.search(line):
                yield found[1], found[2]
                return
        raise SystemExit(f"the demo ended with {process.wait()} before its dashboard was up")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


@contextmanager
def service(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the address of a service with a short job's run and three checks in it, and its owner's token."""

    def ask(*arguments: str) -> None:
        subprocess.run([OMNI_RL, *arguments, "--directory", str(folder)], check=True)

    try:
        ask("up", "--dtype", "bfloat16", "--port", "0")
        ask("check", "--localise")
        ask("submit", "grpo", "--follow", *(part for setting in JOB for part in ("--set", setting)))
        ask("check", "--localise")
        ask("check", "--localise", "--reference", "--step", f"{RUN}/1/{STEPS - 1}")
        state = ServiceState.read(folder)
        assert state is not None, "it is up"
        yield state.url, (folder / "tokens" / "owner").read_text().strip()
    finally:
        ask("down")


def take(shots: Sequence[Shot], url: str, run: str, token: str | None = None) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for shot in shots:
            page = browser.new_page(viewport=shot.size, color_scheme=shot.theme)  # type: ignore[arg-type]
            if token is not None:
                login(page, url, token)
            shoot(page, f"{url}/#run={run}&view={shot.view}", PICTURES / f"{shot.name}.png", shot.panel)
            page.close()
        browser.close()


def login(page: Page, url: str, token: str) -> None:
    page.goto(url)
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_function("() => performance.getEntriesByName('loaded').length > 0")
    page.evaluate("performance.clearMarks()")


def shoot(page: Page, address: str, path: Path, panel: str | None) -> None:
    page.goto(address)
    page.wait_for_function("() => performance.getEntriesByName('loaded').length > 0")
    page.wait_for_timeout(SETTLE_MS)
    if panel is None:
        page.screenshot(path=path)
    else:
        page.locator("section.panel", has=page.get_by_role("heading", name=panel)).first.screenshot(path=path)
    print(path)


if __name__ == "__main__":
    sys.exit(main())
