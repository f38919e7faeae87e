"""The pictures in docs/pictures: the dashboard with a run of the demo in it, taken with Debian's Chromium.

Plays the demo in bfloat16 first (three minutes); with `--url` it takes a coordinator that is up already.
"""

import argparse
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"
ADDRESS = re.compile(r"the dashboard stays at (http://\S+?)/#run=(\S+)")
SETTLE_MS = 1500  # charts, media and video frames
WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 400, "height": 800}
SHOTS = [
    ("timeline-light", "timeline", "light", WIDE),
    ("timeline-dark", "timeline", "dark", WIDE),
    ("where-light", "where", "light", WIDE),
    ("what-dark", "what", "dark", WIDE),
    ("syncs-light", "syncs", "light", WIDE),
    ("timeline-narrow", "timeline", "light", NARROW),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="a coordinator that is up, with the demo's run in it")
    url = parser.parse_args().url
    if url is not None:
        take(url.rstrip("/"), "")
        return 0
    with tempfile.TemporaryDirectory() as folder, demo(Path(folder)) as (address, run):
        take(address, run)
    return 0


@contextmanager
def demo(folder: Path) -> Iterator[tuple[str, str]]:
    """The address of a demo that is over and stays up, and its run."""
    command = [
        str(Path(sys.executable).parent / "omni-rl"),
        "demo",
        "--serve",
        "--dtype",
        "bfloat16",
        "--out",
        str(folder),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
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


def take(url: str, run: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for name, view, theme, size in SHOTS:
            page = browser.new_page(viewport=size, color_scheme=theme)  # type: ignore[arg-type]
            shoot(page, f"{url}/#run={run}&view={view}", PICTURES / f"{name}.png")
            page.close()
        browser.close()


def shoot(page: Page, address: str, path: Path) -> None:
    page.goto(address)
    page.wait_for_function("() => performance.getEntriesByName('loaded').length > 0")
    page.wait_for_timeout(SETTLE_MS)
    page.screenshot(path=path)
    print(path)


if __name__ == "__main__":
    sys.exit(main())
