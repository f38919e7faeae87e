"""Runs the thread that owns an engine: requests, commands and longer tasks take turns between the engine's steps."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from omni_rl.errors import EngineDeadError


class SteppedEngine(Protocol):
    """The part of an engine that the loop uses."""

    @property
    def busy(self) -> bool:
        """Whether the engine has requests under way."""

    def step(self) -> dict[str, Any]:
        """Take one step of everything under way, and return the answers that it finished, by the requests' names."""

    def close(self) -> None: ...


CLOSED = "the engine was closed"
E = TypeVar("E", bound=SteppedEngine)
T = TypeVar("T")


@dataclass(eq=False)
class _Batch:
    """Requests whose answers are returned together. `names` is empty until they are queued in the engine."""

    add: Callable[[Any], Sequence[str]]
    future: "Future[list[Any]]"
    names: Sequence[str]
    answers: dict[str, Any]


@dataclass(eq=False)
class _Task:
    parts: Callable[[Any], Iterator[Any]]
    future: "Future[list[Any]]"
    gated: bool
    iterator: Iterator[Any] | None
    results: list[Any]


class EngineLoop(Generic[E]):
    """Builds an engine in a thread of its own and runs it there; every other thread asks through futures.

    While the gate is closed, the loop takes no step and begins nothing that needs one: such requests and tasks wait.
    Commands run in any case. Once the engine died or the loop was told to `refuse`, all requests and tasks fail, those
    that wait and those that come later.
    """

    def __init__(self, build: Callable[[], E], *, gate_open: bool) -> None:
        self.ready: Future[E] = Future()
        self._build = build
        self._gate_open = gate_open
        self._refusal: Exception | None = None
        self._closing = False
        self._ended = False
        self._commands: deque[tuple[Callable[[E], Any], Future[Any]]] = deque()
        self._waiting: deque[_Batch] = deque()
        self._under_way: dict[str, _Batch] = {}
        self._tasks: deque[_Task] = deque()
        self._work = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def requests(self, add: Callable[[E], Sequence[str]]) -> "Future[list[Any]]":
        """Queue requests with `add`, which returns their names; the future has their answers in that order."""
        batch = _Batch(add, Future(), (), {})
        self._put(self._waiting, batch, batch.future)
        return batch.future

    def task(self, parts: Callable[[E], Iterator[T]], *, gated: bool) -> "Future[list[T]]":
        """Run an iterator, one element a turn, so that commands need not wait for all of it; the future has the
        elements.

        A `gated` task needs proven weights: it begins and goes on only while the gate is open.
        """
        task = _Task(parts, Future(), gated, None, [])
        self._put(self._tasks, task, task.future)
        return task.future

    def command(self, run: Callable[[E], T]) -> "Future[T]":
        """Call `run` with the engine between two steps, before anything else that waits; the future has the result."""
        future: Future[T] = Future()
        with self._work:
            if not self._ended:
                self._commands.append((run, future))
                self._work.notify()
                return future
        future.set_exception(EngineDeadError(CLOSED))
        return future

    def close(self) -> None:
        """End the thread after its present turn, and close the engine."""
        with self._work:
            self._closing = True
            self._work.notify()
        self._thread.join()

    # What follows is for commands, which run in the engine's thread.

    @property
    def gate_open(self) -> bool:
        return self._gate_open

    def open_gate(self) -> None:
        """Open the gate, unless the loop was told to refuse."""
        self._gate_open = self._refusal is None

    def close_gate(self) -> None:
        self._gate_open = False

    def finish_under_way(self, engine: E, go_on: Callable[[], bool]) -> bool:
        """Step until nothing is under way, admitting nothing new; return False if `go_on` returned False before
        that. Raise the reason if the loop refuses meanwhile, as it does when the engine dies."""
        while engine.busy:
            if not go_on():
                return False
            self._step(engine)
            if self._refusal is not None:
                raise self._refusal
        return True

    def refuse(self, error: Exception) -> None:
        """Make all requests and tasks that wait, are under way or come later fail with `error`."""
        self._gate_open = False
        with self._work:
            self._refusal = error
            futures = [batch.future for batch in (*self._waiting, *self._under_way.values())]
            futures += [task.future for task in self._tasks]
            self._waiting.clear()
            self._under_way.clear()
            self._tasks.clear()
        for future in futures:
            if not future.done():
                future.set_exception(error)

    def _put(self, queue: deque[Any], item: Any, future: "Future[Any]") -> None:
        with self._work:
            if self._refusal is None:
                queue.append(item)
                self._work.notify()
                return
            refusal = self._refusal
        future.set_exception(refusal)

    def _run(self) -> None:
        try:
            engine = self._build()
        except BaseException as error:
            self.ready.set_exception(error)
            self._answer_all()
            return
        self.ready.set_result(engine)
        try:
            while True:
                with self._work:
                    self._work.wait_for(lambda: self._closing or self._has_work(engine))
                if self._closing:
                    break
                self._turn(engine)
        finally:
            self._answer_all()
            engine.close()

    def _answer_all(self) -> None:
        """Fail whatever waits, and whatever comes later: the thread ends."""
        closed = EngineDeadError(CLOSED)
        self.refuse(closed)
        with self._work:
            self._ended = True
        for _, future in self._commands:
            if not future.done():
                future.set_exception(closed)

    def _has_work(self, engine: E) -> bool:
        if self._commands:
            return True
        if self._refusal is not None:
            return False
        if self._gate_open:
            return bool(self._waiting or self._tasks or engine.busy)
        return any(not task.gated for task in self._tasks)

    def _turn(self, engine: E) -> None:
        while self._commands:
            self._obey(engine, *self._commands.popleft())
        if self._gate_open:
            while self._waiting:
                self._admit(engine, self._waiting.popleft())
        self._advance_task(engine)
        if self._gate_open and engine.busy:
            self._step(engine)

    def _admit(self, engine: E, batch: _Batch) -> None:
        try:
            batch.names = batch.add(engine)
        except Exception as error:  # reported to the caller: a refused prompt, for example
            batch.future.set_exception(error)
            return
        self._under_way.update(dict.fromkeys(batch.names, batch))
        if not batch.names:
            batch.future.set_result([])

    def _step(self, engine: E) -> None:
        try:
            finished = engine.step()
        except EngineDeadError as error:
            self.refuse(error)
            return
        except Exception as error:  # the thread must live on, to report it
            self.refuse(EngineDeadError(f"a step ended in {type(error).__name__}: {error}; replace the engine"))
            return
        for name, answer in finished.items():
            batch = self._under_way.pop(name)
            batch.answers[name] = answer
            if len(batch.answers) == len(batch.names):
                batch.future.set_result([batch.answers[name] for name in batch.names])

    def _advance_task(self, engine: E) -> None:
        with self._work:
            task = next((task for task in self._tasks if self._gate_open or not task.gated), None)
        if task is None:
            return
        try:
            if task.iterator is None:
                task.iterator = task.parts(engine)
            task.results.append(next(task.iterator))
        except StopIteration:
            self._forget(task)
            task.future.set_result(task.results)
        except Exception as error:  # reported to the caller
            self._forget(task)
            task.future.set_exception(error)
            if isinstance(error, EngineDeadError):
                self.refuse(error)

    def _forget(self, task: _Task) -> None:
        with self._work:
            self._tasks.remove(task)

    def _obey(self, engine: E, run: Callable[[E], Any], future: "Future[Any]") -> None:
        try:
            result = run(engine)
        except Exception as error:  # reported to whoever gave the command
            future.set_exception(error)
            if isinstance(error, EngineDeadError):
                self.refuse(error)
        else:
            future.set_result(result)
