"""Ray's dashboard may be stopped: whoever asks it for jobs is told."""

import socket
import time

import pytest

from omni_rl.bridge import jobs
from omni_rl.bridge.jobs import RayJobs
from omni_rl.errors import RayUnavailableError


def test_a_dashboard_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "TIMEOUT", (1.0, 0.3))
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        with pytest.raises(RayUnavailableError, match="timed out"):
            RayJobs(f"http://{host}:{port}", {}).all()
    assert time.monotonic() - began < 20
