"""Steps on their way to the coordinator, in a thread of their own: the run never waits for it."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from omni_rl.api.runs import RunBody
from omni_rl.api.steps import Verdict
from omni_rl.client import Client
from omni_rl.errors import ConfigError, ConflictError, InvalidRequestError, NotFoundError, RecordError, TooLargeError
from omni_rl.watch.place import Attempt, Place

log = logging.getLogger("omni_rl.watch")
REFUSED = (ConflictError, InvalidRequestError, RecordError, TooLargeError)
"""What sending again cannot mend."""
AWAY = "away"
EMPTY = 4096
"""Dropped steps whose empty parts a rank still posts, so that the others' can be sealed."""


@dataclass(frozen=True)
class Part:
    """This rank's part of a step. `rows` makes its records, in the poster's thread; None for a step that was dropped,
    whose part is empty. `size`: bytes that it holds until it is posted."""

    step: int
    rows: Callable[[], list[dict[str, Any]]] | None
    size: int = 0
    training: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Counts:
    """Steps by what became of them. `dropped`: there was no room in the queue; `refused`: the coordinator, or the
    checks before it, did not take them; `waiting`: still to be posted or sealed."""

    given: int = 0
    posted: int = 0
    sealed: int = 0
    dropped: int = 0
    refused: int = 0
    waiting: int = 0


@dataclass(frozen=True)
class Pace:
    """How long the poster waits, in seconds. Between attempts it waits from `first`, doubling, to `longest`;
    `others`: the first rank waits so long for the other ranks' parts before it seals a step without them."""

    first: float = 0.05
    longest: float = 5.0
    others: float = 120.0


class Poster:
    """Posts parts in order and, on the first rank, seals each step once all ranks have posted theirs.

    A coordinator that is down, slow or restarted is asked again for ever. Parts and seals are the same request however
    often they are sent, so that a lost answer makes nothing twice. Where more steps wait than there is room for, the
    oldest is dropped whole, and counted.
    """

    def __init__(
        self,
        connect: Callable[[], Client],
        run: RunBody,
        place: Place,
        attempt: Attempt,
        on_verdict: Callable[[Verdict], None],
        *,
        steps: int = 64,
        size: int = 1 << 29,
        pace: Pace | None = None,
    ) -> None:
        """`steps` and `size` (bytes) bound what waits."""
        self._connect = connect
        self._run = run
        self._place = place
        self._attempt = attempt
        self._on_verdict = on_verdict
        self._most = steps
        self._most_bytes = size
        self._pace = pace or Pace()
        self._parts: deque[Part] = deque()
        self._seals: deque[tuple[float, Part]] = deque()
        self._figures: deque[tuple[int, Mapping[str, float]]] = deque(maxlen=steps)
        self._counts = Counts()
        self._changed = threading.Condition()
        self._over = False
        self._ended = False
        self._client: Client | None = None
        self._opened = False
        self._said: set[str] = set()
        self._thread = threading.Thread(target=self._work, name="omni-rl-watch", daemon=True)
        self._thread.start()

    @property
    def counts(self) -> Counts:
        with self._changed:
            return replace(self._counts, waiting=len(self._parts) + len(self._seals))

    def put(self, part: Part) -> None:
        """Hand over a step's part. Never waits."""
        with self._changed:
            self._parts.append(part)
            self._count("given")
            self._make_room()
            self._changed.notify_all()

    def add_training(self, step: int, figures: Mapping[str, float]) -> None:
        """Hand over what the trainer knows of a step once it has learnt from it. Never waits."""
        with self._changed:
            self._figures.append((step, figures))
            self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Wait until everything has arrived, for so many seconds at most; return whether it has."""
        with self._changed:
            return self._changed.wait_for(lambda: self._idle, seconds)

    def close(self, seconds: float, *, over: bool = False) -> bool:
        """As `flush`, and end. `over`: the first rank then says that the run is, if it has sealed a step."""
        with self._changed:
            self._over = over and self._place.rank == 0 and bool(self._counts.sealed or self._seals or self._parts)
            self._changed.notify_all()
        arrived = self.flush(seconds)
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        return arrived

    @property
    def _idle(self) -> bool:
        return not (self._parts or self._seals or self._figures or self._over)

    @property
    def _only_over(self) -> bool:
        """Whether all that is left is to say that the run is over: no process waits at its end for that alone."""
        with self._changed:
            return self._over and not (self._parts or self._seals or self._figures)

    def _count(self, what: str | None) -> None:
        if what is not None:
            self._counts = replace(self._counts, **{what: vars(self._counts)[what] + 1})

    def _make_room(self) -> None:
        """Drop whole steps, the oldest first; the one that is just being posted stays."""
        full = [part for part in self._parts if part.rows is not None]
        size = sum(part.size for part in full)
        for part in full[1:-1] if len(full) > 1 else []:
            if len(full) <= self._most and size <= self._most_bytes:
                break
            full.remove(part)
            size -= part.size
            self._drop(part)
        empty = [part for part in self._parts if part.rows is None]
        for part in empty[: len(empty) - EMPTY]:
            self._parts.remove(part)

    def _drop(self, part: Part) -> None:
        self._count("dropped")
        self._say("dropped", f"steps wait for a coordinator that does not take them: step {part.step} is dropped")
        if self._place.rank == 0:
            self._parts.remove(part)
        else:
            # The first rank seals a step once all have posted: nobody should wait for what will not come.
            self._parts[self._parts.index(part)] = Part(part.step, None)

    def _work(self) -> None:
        wait = self._pace.first
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or not self._idle)
                if self._ended:
                    break
                part = self._parts[0] if self._parts else None
            try:
                done = self._next(part)
            except Exception as error:
                # The boundary between our thread and somebody's run: whatever fails here is told, and tried again.
                if self._only_over:
                    self._say("end", f"the coordinator was not told that the run is over: {error}")
                    self._forget_end()
                    continue
                self._failed(error)
                with self._changed:
                    self._changed.wait_for(lambda: self._ended, wait)
                wait = min(2 * wait, self._pace.longest)
                continue
            if not done:
                self._rest(part)
            wait = self._pace.first
        if self._client is not None:
            self._client.close()

    def _rest(self, seen: Part | None) -> None:
        """Wait a little for other ranks; not longer than until this one has something new to post."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._ended or (self._parts and self._parts[0] is not seen), self._pace.first
            )

    def _next(self, part: Part | None) -> bool:
        """Do what is due, `part` first; return False where that waits for other ranks."""
        client = self._open()
        attempt = self._attempt.number(client)
        if attempt is None:
            return False
        if part is not None:
            return self._post(client, attempt, part)
        if self._seals:
            return self._seal(client, attempt, *self._seals[0])
        if self._figures:
            self._train(client, attempt, *self._figures[0])
        elif self._over:
            self._end(client)
        return True

    def _open(self) -> Client:
        if self._client is None:
            self._client = self._connect()
        if not self._opened:
            # The first rank says what the run is: behind a server, it alone knows the engine's dtype.
            if self._place.rank == 0:
                self._client.create_run(self._run)
            else:
                self._client.whoami()
            self._opened = True
            if AWAY in self._said:
                self._said.remove(AWAY)
                log.warning("omni-rl: the coordinator answers again")
        return self._client

    def _post(self, client: Client, attempt: int, part: Part) -> bool:
        try:
            rows = part.rows() if part.rows else []
        except Exception as error:
            # The boundary to values of somebody's run: what cannot be read now never can be, and others wait behind it.
            why = str(error) if isinstance(error, RecordError) else f"{type(error).__name__}: {error}"
            self._refuse(part, f"step {part.step} was refused: {why}")
            return True
        try:
            client.put_part(self._run.run, attempt, part.step, self._place.rank, rows)
        except ConflictError:
            if not self._attempt.settled:
                self._attempt.taken()
            else:
                self._refuse(part, f"step {part.step} of attempt {attempt} is there already with other content")
            return True
        except REFUSED as error:
            self._refuse(part, f"step {part.step} was refused: {error}")
            return True
        except NotFoundError:
            if self._place.rank == 0:
                raise
            return False  # the first rank has not made the run yet
        self._attempt.settle()
        with self._changed:
            self._parts.remove(part)
            self._count("posted" if part.rows else None)
            if self._place.rank == 0:
                self._seals.append((time.monotonic() + self._pace.others, part))
            self._changed.notify_all()
        return True

    def _seal(self, client: Client, attempt: int, deadline: float, part: Part) -> bool:
        late = time.monotonic() > deadline
        parts = None if late else self._place.world
        try:
            sealed = client.seal(self._run.run, attempt, part.step, parts=parts, training=part.training)
        except (NotFoundError, *REFUSED) as error:
            if isinstance(error, ConflictError) and not late:
                return False  # not all ranks have posted
            self._say("unsealed", f"step {part.step} could not be sealed: {error}")
            sealed = None
        if sealed is not None and late:
            self._say("late", f"step {part.step} was sealed without some ranks' parts, which did not come")
        with self._changed:
            self._seals.popleft()
            self._count("sealed" if sealed else None)
        if sealed is not None:
            self._on_verdict(sealed.verdict)
        with self._changed:
            self._changed.notify_all()
        return True

    def _train(self, client: Client, attempt: int, step: int, figures: Mapping[str, float]) -> None:
        try:
            client.add_training(self._run.run, attempt, step, figures)
        except NotFoundError:
            pass  # the step was dropped
        except REFUSED as error:
            self._say("training", f"the trainer's figures of step {step} were refused: {error}")
        with self._changed:
            self._figures.popleft()
            self._changed.notify_all()

    def _end(self, client: Client) -> None:
        try:
            client.end_run(self._run.run)
        except (NotFoundError, *REFUSED) as error:
            self._say("end", f"the run's end was refused: {error}")
        self._forget_end()

    def _forget_end(self) -> None:
        with self._changed:
            self._over = False
            self._changed.notify_all()

    def _refuse(self, part: Part, why: str) -> None:
        self._say("refused", why)
        with self._changed:
            self._count("refused")
            # The other ranks' parts are sealed all the same.
            at = self._parts.index(part)
            if self._place.world > 1 and part.rows is not None:
                self._parts[at] = Part(part.step, None, training=part.training)
            else:
                del self._parts[at]
            self._changed.notify_all()

    def _failed(self, error: Exception) -> None:
        if isinstance(error, ConfigError):
            self._say("config", f"nothing can be posted: {error}")
            return
        if isinstance(error, ConflictError):
            self._say("config", f"nothing can be posted: {error}; OMNI_RL_RUN names the run")
        else:
            self._say(AWAY, f"nothing can be posted for now, and is tried again: {error}")
        # A run that is not there was lost with its ledger: it is made again. A token may have been renewed.
        if self._client is not None:
            self._client.close()
        self._client, self._opened = None, False

    def _say(self, kind: str, what: str) -> None:
        """Log each kind of trouble once; that the coordinator is away, once each time."""
        if kind not in self._said:
            self._said.add(kind)
            log.warning("omni-rl: %s", what)
