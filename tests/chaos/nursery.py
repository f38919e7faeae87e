"""Forks processes that cost milliseconds: it has imported and done everything once, and runs one thread."""

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def serve(address: str) -> None:
    """Run each (log file, function, arguments) that arrives in a process of its own; answers with its id."""
    from tests.chaos.parties import rehearse

    rehearse()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    with Listener(address, backlog=64) as listener:
        os.write(1, b"ready\n")
        while True:
            with listener.accept() as connection:
                request = connection.recv()
                if request is None:
                    return
                pid = os.fork()
                if not pid:
                    connection.close()
                    listener.close()
                    _become(*request)
                connection.send(pid)


def _become(log: Path, run: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        run(*arguments)
        sys.stdout.flush()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def fork(address: str, log: Path, run: Callable[..., None], *arguments: Any) -> int:
    """The id of a new process that calls `run`."""
    with Client(address) as connection:
        connection.send((log, run, arguments))
        pid: int = connection.recv()
    return pid


@contextmanager
def started(address: str) -> Iterator[str]:
    """A nursery at `address`, ended with the block."""
    code = f"from tests.chaos.nursery import serve; serve({address!r})"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield address
    finally:
        process.kill()
        process.communicate()
