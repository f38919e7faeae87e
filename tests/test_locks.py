"""Locks on files end with whoever holds them, name the holder, and outlast a killed process by moments only."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from omni_rl import locks
from omni_rl.locks import FileLock, LockHeldError, is_free, pid_of
from omni_rl.processes import life

HOLDER = """
import os, sys, time
from pathlib import Path
from omni_rl.locks import FileLock
lock = FileLock(Path(sys.argv[1]))
lock.take(str(os.getpid()))
{then}
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def held(path: Path, then: str = "") -> Iterator[subprocess.Popen[str]]:
    """By a process of its own."""
    code = HOLDER.format(then=then)
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_one_holder_at_a_time_who_is_named(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.holder() == ""
    first.take(f"{os.getpid()}:ticket")
    assert not is_free(tmp_path / "lock")
    with pytest.raises(LockHeldError) as error:
        second.take("2")
    assert error.value.holder == f"{os.getpid()}:ticket"
    assert pid_of(error.value.holder) == os.getpid()
    with pytest.raises(LockHeldError):
        second.share()
    first.close()
    assert is_free(tmp_path / "lock")
    second.take("2")
    assert second.holder() == "2", "nothing of the longer line before"
    second.close()


def test_a_shared_lock_keeps_out_whoever_wants_it_alone(tmp_path: Path) -> None:
    first, second, third = (FileLock(tmp_path / "lock") for _ in range(3))
    first.take(str(os.getpid()))
    first.share()
    second.share()
    first.close()
    with pytest.raises(LockHeldError, match=str(os.getpid())):
        third.take("3")
    assert third.holder() == str(os.getpid())
    second.close()
    third.take("3")
    third.close()


def test_a_stopped_holder_is_not_a_dead_one(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    with held(tmp_path / "lock") as process:
        process.send_signal(signal.SIGSTOP)
        while life(process.pid) != "stopped":
            time.sleep(0.01)
        with pytest.raises(LockHeldError, match=str(process.pid)):
            lock.take("me")
    lock.take("me")
    lock.close()


def test_what_a_killed_process_still_holds_is_waited_for(tmp_path: Path) -> None:
    """A child that was forked holds the lock for a moment after its parent is gone, as the last thread of one does."""
    lock = FileLock(tmp_path / "lock")
    then = "if os.fork() == 0:\n    time.sleep(locks.RELEASE_SECONDS / 4)\n    os._exit(0)"
    with held(tmp_path / "lock", f"from omni_rl import locks\n{then}") as process:
        process.kill()
        process.wait()
        lock.take("me")
    assert lock.holder() == "me"
    lock.close()


def test_whoever_outlives_the_holder_for_long_keeps_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "RELEASE_SECONDS", 0.1)
    lock = FileLock(tmp_path / "lock")
    then = "child = os.fork()\nif child == 0:\n    time.sleep(60)\nopen(sys.argv[1] + '.child', 'w').write(str(child))"
    with held(tmp_path / "lock", then) as process:
        child = int((tmp_path / "lock.child").read_text())
        process.kill()
        process.wait()
        with pytest.raises(LockHeldError, match=str(process.pid)):
            lock.take("me")
        os.kill(child, signal.SIGKILL)
    lock.close()


def test_a_lock_of_a_missing_file_is_no_lock(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        is_free(tmp_path / "lock")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        FileLock(tmp_path / "file" / "lock")


@pytest.mark.parametrize(("line", "pid"), [("12", 12), ("12:ab", 12), ("12 on here", 12), ("", None), ("x1", None)])
def test_the_process_in_a_holders_line(line: str, pid: int | None) -> None:
    assert pid_of(line) == pid
