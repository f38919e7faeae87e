"""When a process of this machine counts as gone."""

import subprocess
import sys

import pytest

from omni_rl import processes


def test_a_process_that_nobody_has_reaped_yet_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "EXIT_TIMEOUT", 3600.0)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    processes.wait_until_gone([ended.pid])
    assert ended.wait() == 0
