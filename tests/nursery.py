"""Forks processes that cost milliseconds: it has imported everything once, which takes most of a short process's
time."""

import atexit
import contextlib
import functools
import gc
import importlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

from omni_rl.service.ports import free_port

ROOT = Path(__file__).parents[1]
MODEL = (
    "omni_rl.models.nemotron_omni.model",
    "omni_rl.models.nemotron_omni.parallel",
    "omni_rl.client",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
)
"""The modules that ranks of a training model import."""
SECONDS = 300.0


def serve(address: str, prepare: Sequence[str]) -> None:
    """Fork for each (log file, function, arguments) that arrives, and send the process's id, and its exit code once it
    has ended. A forked process returns from here when it has called its function.

    `prepare` has what is done once before: modules to import, or functions to call as `module:function`.
    """
    end = _End()
    for each in prepare:
        module, _, function = each.partition(":")
        found = importlib.import_module(module)
        if function:
            getattr(found, function)()
    gc.collect()
    gc.freeze()  # a collection in a forked process would copy all that it shares with this one
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        os.write(1, b"ready\n")
        log, run, arguments = _next(listener)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    end.call(run, *arguments)


def _next(listener: socket.socket) -> Any:
    """Return, in a forked process, with what arrived for it; the process that forks stays in here."""
    running: dict[int, tuple[int, Connection]] = {}  # by the descriptor that tells of a process's end
    while True:
        ready, _, _ = select.select([listener.fileno(), *running], [], [])
        for each in ready:
            if each in running:
                pid, connection = running.pop(each)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with contextlib.suppress(OSError), connection:  # nobody may listen any more
                    connection.send(code)
                os.close(each)
                continue
            connection = Connection(listener.accept()[0].detach())
            asked = connection.recv()
            if not (pid := os.fork()):
                connection.close()
                for descriptor, (_, others) in running.items():
                    os.close(descriptor)
                    others.close()
                return asked
            with contextlib.suppress(OSError):
                connection.send(pid)
            running[os.pidfd_open(pid)] = pid, connection


class _End:
    """Ends the process after all that is to be called at its exit, and leaves its modules as they are: to take them
    apart would copy them first, which takes longer than many a process."""

    def __init__(self) -> None:
        """What is registered first is called last."""
        self._code = 0
        atexit.register(self._end)

    def call(self, run: Callable[..., object], *arguments: Any) -> None:
        """Call `run`; what it raises decides the exit code, as in any process."""
        try:
            run(*arguments)
        except SystemExit as error:
            self._code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
            self._code = 1

    def _end(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(self._code)


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


class Ranks:
    """Processes of a nursery that are the ranks of one run; the output of all is in one log file."""

    def __init__(self, address: str, log: Path, count: int, run: Callable[..., object], *arguments: Any) -> None:
        """Have each of `count` new processes call `run` with its rank and the arguments."""
        self.processes = [Forked(address, log, run, rank, *arguments) for rank in range(count)]

    def poll(self, seconds: float = 0.0) -> int | None:
        """Return 0 once all have ended well, or the exit code of one that has not, after ending the others; None if
        they still run after so many seconds."""
        deadline = time.monotonic() + seconds
        while True:
            codes = [process.poll() for process in self.processes]
            if failed := [code for code in codes if code]:
                self.kill()
                return failed[0]
            if None not in codes:
                return 0
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.01)

    def wait(self, timeout: float) -> int:
        """Return what `poll` does once they have ended. Raises `subprocess.TimeoutExpired`."""
        code = self.poll(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"{len(self.processes)} ranks", timeout)
        return code

    def kill(self) -> None:
        """End all that still run."""
        for process in self.processes:
            process.kill()


def run_ranks(log: Path, count: int, run: Callable[..., object], *arguments: Any) -> None:
    """Call `run` with a rank and the arguments in each of `count` processes that have imported the training model, and
    return when all have ended well."""
    said_by(Ranks(shared(*MODEL), log, count, run, *arguments), log)


def said_by(processes: Forked | Ranks, log: Path) -> str:
    """Return what the processes have said in their log once they have ended well; none of them outlives this call."""
    try:
        code = processes.wait(SECONDS)
    finally:
        processes.kill()
    said = log.read_text(errors="replace")
    assert code == 0, said[-4000:]
    return said


def call_main(module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Call a module's `main` with these arguments of the command line and environment variables."""
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[:] = [module, *arguments]
    importlib.import_module(module).main()


def torchrun(
    address: str, log: Path, count: int, module: str, arguments: Sequence[str], environment: Mapping[str, str]
) -> Ranks:
    """Have the nursery at `address` call a module's `main` in `count` ranks, as `torchrun` would start them."""
    return Ranks(address, log, count, _call_main_of_rank, count, free_port(), module, arguments, environment)


def _call_main_of_rank(
    rank: int, count: int, port: int, module: str, arguments: Sequence[str], environment: Mapping[str, str]
) -> None:
    """Call a module's `main`, as `call_main` does, with the variables that `torchrun` sets for a rank besides."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    variables = {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
    call_main(module, arguments, {**environment, **variables})


@functools.cache
def shared(*prepare: str) -> str:
    """The address of a nursery that all tests of this process have in common, and that ends with it."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(started(*prepare))


@contextlib.contextmanager
def started(*prepare: str, python: str = sys.executable, environment: Mapping[str, str] = os.environ) -> Iterator[str]:
    """A nursery in an interpreter with these environment variables, ended with the block; yields its address."""
    with tempfile.TemporaryDirectory(prefix="omni-") as directory:
        address = f"{directory}/nursery"
        code = f"from tests.nursery import serve; serve({address!r}, {prepare!r})"
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
