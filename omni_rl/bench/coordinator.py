"""A coordinator of a benchmark's own: a process with a fresh ledger, gone with it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from omni_rl.bench.result import BenchmarkError

START_SECONDS = 60.0


@dataclass(frozen=True)
class Running:
    url: str
    pid: int


@contextmanager
def coordinator(folder: Path, *, core: int | None = None, webhook: str | None = None) -> Iterator[Running]:
    """One that answers, with ledger and media in `folder`; on one `core` alone, if given, and telling `webhook`, an
    address, of incidents."""
    address, settings = folder / "address", folder / "settings.json"
    chosen = {"ledger": f"sqlite:///{folder / 'ledger.db'}", "media": {"directory": str(folder / "media")}, "port": 0}
    pager = {} if webhook is None else {"pager": {"webhooks": [{"name": "bench", "url": webhook}]}}
    settings.write_text(json.dumps({**chosen, **pager, "address_file": str(address)}))
    command = [sys.executable, "-m", "omni_rl_services.coordinator", str(settings)]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # noqa: S603 - our own command line
    try:
        if core is not None:
            os.sched_setaffinity(server.pid, {core})  # before its threads are there: they inherit it
        deadline = time.monotonic() + START_SECONDS
        while not address.exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise BenchmarkError(f"the coordinator did not start (exit code {server.returncode})")
            time.sleep(0.05)
        yield Running(address.read_text(), server.pid)
    finally:
        server.terminate()
        server.wait()
