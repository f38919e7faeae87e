"""Starts a coordinator of a benchmark's own: a process with a fresh ledger, which ends with the benchmark."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omni_rl_bench.result import BenchmarkError

START_SECONDS = 60.0


@dataclass(frozen=True)
class Running:
    url: str
    pid: int


@contextmanager
def coordinator(
    folder: Path,
    *,
    core: int | None = None,
    webhook: str | None = None,
    settings: Mapping[str, Any] | None = None,
    module: str = "omni_rl_services.coordinator",
) -> Iterator[Running]:
    """Start a coordinator that answers, with ledger, media and `log` in `folder`.

    It runs on one `core` alone, if given, and reports incidents to the address `webhook`. `settings` are added to the
    usual ones, or take their place. `module` is what is run, with a settings file as its argument.
    """
    address, file = folder / "address", folder / "settings.json"
    chosen = {"ledger": f"sqlite:///{folder / 'ledger.db'}", "media": {"directory": str(folder / "media")}, "port": 0}
    pager = {} if webhook is None else {"pager": {"webhooks": [{"name": "bench", "url": webhook}]}}
    file.write_text(json.dumps({**chosen, **pager, "address_file": str(address), **(settings or {})}))
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([sys.executable, "-m", module, str(file)], stderr=log)  # noqa: S603 - our own
    try:
        if core is not None:
            os.sched_setaffinity(server.pid, {core})  # before its threads are there: they inherit it
        deadline = time.monotonic() + START_SECONDS
        while not address.exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise BenchmarkError(f"the coordinator did not start (exit code {server.returncode})")
            time.sleep(0.05)
        yield Running(address.read_text(), server.pid)
        if server.poll() is not None:
            raise BenchmarkError(f"the coordinator ended by itself (exit code {server.returncode})")
    finally:
        server.terminate()
        server.wait()
