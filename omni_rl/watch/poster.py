"""Sends steps to the coordinator: parts of this rank, and on the first rank the seals and what else follows."""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from omni_rl.api.runs import RunBody
from omni_rl.api.steps import Verdict
from omni_rl.client import Client
from omni_rl.client.posting import REFUSED, Pace, Post, Poster
from omni_rl.errors import ConfigError, ConflictError, NotFoundError, OmniRLError, RecordError
from omni_rl.watch.pictures import StepPictures
from omni_rl.watch.place import AttemptNumber, PostingRank
from omni_rl.watch.uploads import Uploads

log = logging.getLogger("omni_rl.watch")
Rows = Callable[[], list[dict[str, Any]]]
OTHERS = 120.0
"""The seconds that the first rank waits for the other ranks' parts before it seals a step without them."""
PIXELS = 1 << 28
"""The bytes of pixels that waiting steps may hold together, and of PNGs that wait to be uploaded."""


@dataclass
class RankPart:
    """This rank's part of a step.

    `rows` makes its records, in the poster's thread; None for a step that was dropped or refused, whose part is empty.
    `size` is the bytes that the part holds until it is posted, without its `pictures`.
    """

    step: int
    rows: Rows | None
    size: int = 0
    pictures: StepPictures | None = None
    training: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Counts:
    """The number of steps by what became of them.

    `dropped`: there was no room in the queue; `refused`: the coordinator, or the checks before it, did not take them;
    `waiting`: they are still to be posted or sealed.
    """

    given: int = 0
    posted: int = 0
    sealed: int = 0
    dropped: int = 0
    refused: int = 0
    waiting: int = 0


class StepPoster:
    """Posts parts in order and, on the first rank, seals each step once all ranks have posted theirs.

    Parts and seals are the same request however often they are sent, so that a lost answer makes nothing twice.
    """

    def __init__(
        self,
        url: str | None,
        token: str | None,
        run: RunBody,
        place: PostingRank,
        attempt: AttemptNumber,
        on_verdict: Callable[[Verdict], None],
        *,
        steps: int = 64,
        pace: Pace | None = None,
        others: float = OTHERS,
    ) -> None:
        """Start the poster. `steps` is how many may wait."""
        self._run = run
        self._place = place
        self._attempt = attempt
        self._on_verdict = on_verdict
        self._others = others
        self._connected = 0.0
        self._seals: deque[tuple[float, RankPart]] = deque()
        self._figures: deque[tuple[int, Mapping[str, float]]] = deque(maxlen=steps)
        self._taken: list[StepPictures] = []
        self._uploads = Uploads(PIXELS)
        self._counts = Counts()
        self._over = False
        self._poster = Poster(
            url,
            token,
            log,
            items=steps,
            pace=pace,
            greet=self._greet,
            later=self._later,
            dropping="steps wait for a coordinator that does not take them: the oldest is dropped",
        )

    @property
    def counts(self) -> Counts:
        with self._poster.changed:
            waiting = self._poster.waiting + len(self._seals)
            return replace(self._counts, waiting=waiting, dropped=self._poster.dropped)

    @property
    def obstacle(self) -> str | None:
        """Why nothing can be posted: an address, a token or a setting of this process is wrong. None where nothing is
        known to be."""
        return self._poster.obstacle

    @property
    def ended(self) -> bool:
        """Whether `close` was called."""
        return self._poster.ended

    def take(self, each: Sequence[Sequence[Any] | None], token: int | None) -> StepPictures:
        """Return the pictures of a step that is about to be handed over: as many as there is room for beside those of
        the steps that wait, so that records never make room for pictures."""
        with self._poster.changed:
            self._taken = [one for one in self._taken if one.size]
            self._taken.append(StepPictures(each, token, PIXELS - sum(one.size for one in self._taken)))
            return self._taken[-1]

    def put(self, part: RankPart) -> None:
        """Hand over a step's part. This never waits."""
        size = part.size + (part.pictures.size if part.pictures else 0)
        with self._poster.changed:
            self._count("given")
            self._poster.put(lambda client: self._post(client, part), size=size, rest=lambda: self._empty(part))

    def add_training(self, step: int, figures: Mapping[str, float]) -> None:
        """Hand over what the trainer knows of a step once it has learnt from it. This never waits."""
        with self._poster.changed:
            self._figures.append((step, figures))
            self._poster.changed.notify_all()

    def flush(self, seconds: float, enough: Callable[[], bool] = lambda: False) -> bool:
        """Wait until every part has arrived or cannot, or those that have are `enough`, for `seconds` at most; return
        whether every part has arrived."""
        return self._poster.flush(seconds, enough)

    def close(self, seconds: float, *, over: bool = False) -> bool:
        """Do what `flush` does, and end. `over`: the first rank then says that the run is over, if it has sealed a
        step."""
        with self._poster.changed:
            self._over = over and self._place.rank == 0 and bool(self._counts.sealed or self.counts.waiting)
            self._poster.changed.notify_all()
        return self._poster.close(seconds)

    def _count(self, what: str) -> None:
        self._counts = replace(self._counts, **{what: vars(self._counts)[what] + 1})

    def _empty(self, part: RankPart) -> Post | None:
        """Return the post of an empty part for a dropped one: the first rank should not wait for what will not come."""
        if part.pictures is not None:
            part.pictures.let_go()
        if self._place.rank == 0:
            return None
        empty = RankPart(part.step, None)
        return lambda client: self._post(client, empty)

    def _later(self) -> Post | None:
        if self._seals:
            posted, part = self._seals[0]
            return lambda client: self._seal(client, posted, part)
        if self._figures:
            step, figures = self._figures[0]
            return lambda client: self._train(client, step, figures)
        if self._uploads:
            return lambda client: self._uploads.upload(client, self._poster.say)
        return self._end if self._over else None

    def _greet(self, client: Client) -> None:
        self._connected = time.monotonic()
        self._uploads.forget()
        # The first rank says what the run is: behind a server, it alone knows the engine's dtype. A run that is not
        # there was lost with its ledger: it is made again.
        try:
            if self._place.rank == 0:
                client.create_run(self._run)
            else:
                client.whoami()
        except ConflictError as error:
            raise ConfigError(f"{error}; OMNI_RL_RUN names the run") from None
        except REFUSED as error:
            raise ConfigError(str(error)) from None

    def _post(self, client: Client, part: RankPart) -> bool:
        attempt = self._attempt.number(client)
        if attempt is None:
            return False
        rows = self._read(part)
        if rows is None:
            return self._refused(part)
        try:
            client.put_part(self._run.run, attempt, part.step, self._place.rank, rows)
        except REFUSED as error:
            if isinstance(error, ConflictError) and not self._attempt.settled:
                self._attempt.taken()
                return False
            self._poster.say("refused", f"step {part.step} was refused: {error}")
            return self._refused(part)
        except NotFoundError:
            if self._place.rank == 0:
                raise
            return False  # the first rank has not made the run yet
        self._attempt.settle()
        with self._poster.changed:
            if part.rows is not None:
                self._count("posted")
            if self._place.rank == 0:
                self._seals.append((time.monotonic(), part))
        return True

    def _read(self, part: RankPart) -> list[dict[str, Any]] | None:
        """Make the part's records; None where its values cannot be read."""
        try:
            rows = part.rows() if part.rows else []
            if part.pictures is not None:
                part.pictures.name(partial(self._uploads.keep, say=self._poster.say), self._poster.say)
                part.pictures.add_to(rows, self._poster.say)
            return rows
        except Exception as error:
            # The boundary to values of somebody's run: what cannot be read now never can be, and others wait behind it.
            why = str(error) if isinstance(error, RecordError) else f"{type(error).__name__}: {error}"
            self._poster.say("refused", f"step {part.step} was refused: {why}")
            return None

    def _refused(self, part: RankPart) -> bool:
        """Count the part as refused, and have its empty part posted where other ranks post too: their parts are sealed
        all the same. An empty part was counted before."""
        if part.rows is None:
            return True
        with self._poster.changed:
            self._count("refused")
        if part.pictures is not None:
            part.pictures.let_go()
        part.rows = part.pictures = None
        return self._place.world == 1

    def _seal(self, client: Client, posted: float, part: RankPart) -> bool:
        attempt = self._attempt.number(client)
        assert attempt is not None, "a part was posted under it"
        # While the coordinator was away the other ranks could not post either.
        waited = time.monotonic() - max(posted, self._connected)
        late = self._place.world > 1 and waited > self._others
        parts = None if late else self._place.world
        try:
            sealed = client.seal(self._run.run, attempt, part.step, parts=parts, training=part.training)
        except (NotFoundError, *REFUSED) as error:
            if isinstance(error, ConflictError) and not late:
                return False  # not all ranks have posted
            self._poster.say("unsealed", f"step {part.step} could not be sealed: {error}")
            sealed = None
        if sealed is not None and late:
            self._poster.say("late", f"step {part.step} was sealed without some ranks' parts, which did not come")
        try:
            if sealed is not None:
                self._on_verdict(sealed.verdict)
        finally:
            # Who waits for the queue to be empty wants the verdict too, so that the seal leaves the queue after it.
            with self._poster.changed:
                self._seals.popleft()
                if sealed is not None:
                    self._count("sealed")
        return True

    def _train(self, client: Client, step: int, figures: Mapping[str, float]) -> bool:
        attempt = self._attempt.number(client)
        if attempt is None:
            return False
        try:
            client.add_training(self._run.run, attempt, step, figures)
        except NotFoundError:
            pass  # the step was dropped
        except REFUSED as error:
            self._poster.say("training", f"the trainer's figures of step {step} were refused: {error}")
        with self._poster.changed:
            self._figures.popleft()
        return True

    def _end(self, client: Client) -> bool:
        try:
            client.end_run(self._run.run)
        except OmniRLError as error:  # no process waits at its end for that alone
            self._poster.say("end", f"the coordinator was not told that the run is over: {error}")
        with self._poster.changed:
            self._over = False
        return True
