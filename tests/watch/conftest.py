"""A coordinator in a process of its own, that can be killed and started again on the same ledger and port."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from omni_rl.service.ports import free_port


class CoordinatorProcess:
    """`python -m omni_rl_services.coordinator` with its ledger in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        settings = {
            "port": self.port,
            "ledger": f"sqlite:///{self._directory}/ledger.db",
            "media": {"directory": f"{self._directory}/media"},
        }
        file = self._directory / "coordinator.json"
        file.write_text(json.dumps(settings))
        command = [sys.executable, "-m", "omni_rl_services.coordinator", str(file)]
        with (self._directory / "coordinator.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"{self.url}/healthz", trust_env=False)
                return
            except httpx.TransportError:
                assert self._process.poll() is None, (self._directory / "coordinator.log").read_text()
                assert time.monotonic() < deadline, "the coordinator does not answer"
                time.sleep(0.02)

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(60)

    def pause(self) -> None:
        """Stop it where it stands: connections are taken, and nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.go_on()
            self.kill()


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[CoordinatorProcess]:
    """One that has not been started."""
    process = CoordinatorProcess(tmp_path)
    yield process
    process.end()
