"""Forks processes that cost milliseconds: it has imported everything once, which takes most of a short process's
time."""

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def serve(address: str, prepare: Sequence[str]) -> Callable[[], object]:
    """Fork for each (log file, function, arguments) that arrives, and send the process's id, and its exit code once it
    has ended. Returns in a forked process with what it has to call.

    `prepare` has what is done once before: modules to import, or functions to call as `module:function`.
    """
    for each in prepare:
        module, _, function = each.partition(":")
        found = importlib.import_module(module)
        if function:
            getattr(found, function)()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody here waits for those who wait
    with Listener(address, backlog=64) as listener:
        os.write(1, b"ready\n")
        while True:
            with listener.accept() as connection:
                log, run, arguments = connection.recv()
                if os.fork():
                    continue
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                if child := os.fork():
                    _report(connection, child)
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            return partial(run, *arguments)


def _report(connection: Connection, child: int) -> None:
    """Send a child's id and then its exit code, and end."""
    with contextlib.suppress(OSError):  # nobody listens any more
        connection.send(child)
        connection.send(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)
    os._exit(0)


class Forked:
    """A process that a nursery has forked; its output is in a log file."""

    def __init__(self, address: str, log: Path, run: Callable[..., object], *arguments: Any) -> None:
        """Have the nursery at `address` call `run`, which it imports by name, in a new process."""
        log.touch()  # there for whoever reads it before the process has begun
        self._connection = Client(address)
        self._connection.send((log, run, arguments))
        self.pid: int = self._connection.recv()
        self._code: int | None = None

    def poll(self, seconds: float = 0.0) -> int | None:
        """Return the exit code, negative for a signal; None if the process still runs after so many seconds."""
        if self._code is None and self._connection.poll(seconds):
            self._code = self._connection.recv()
            self._connection.close()
        return self._code

    def wait(self, timeout: float) -> int:
        """Return the exit code once the process has ended. Raises `subprocess.TimeoutExpired`."""
        code = self.poll(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return code

    def kill(self) -> None:
        """End the process if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def fork(address: str, log: Path, run: Callable[..., object], *arguments: Any) -> int:
    """Return the id of a new process that calls `run`."""
    return Forked(address, log, run, *arguments).pid


def call_main(module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Call a module's `main` with these arguments of the command line and environment variables."""
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[:] = [module, *arguments]
    importlib.import_module(module).main()


@contextlib.contextmanager
def started(*prepare: str, python: str = sys.executable, environment: Mapping[str, str] = os.environ) -> Iterator[str]:
    """A nursery in an interpreter with these environment variables, ended with the block; yields its address."""
    with tempfile.TemporaryDirectory(prefix="omni-") as directory:
        address = f"{directory}/nursery"
        code = f"from tests.nursery import serve; serve({address!r}, {prepare!r})()"
        process = subprocess.Popen(
            [python, "-c", code],
            cwd=ROOT,
            env={**environment, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield address
        finally:
            process.kill()
            process.communicate()
