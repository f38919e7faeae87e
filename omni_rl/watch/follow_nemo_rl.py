"""Follows the files that NeMo RL writes, from a process beside the run."""

import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from omni_rl.client import Client
from omni_rl.consistency.posted.step import LogprobsOf
from omni_rl.errors import ConfigError, NotFoundError, RecordError
from omni_rl.watch.readers import nemo_rl
from omni_rl.watch.watcher import Watcher

NAME = re.compile(r"train_data_step(\d+)\.jsonl")
POLL_SECONDS = 1.0
FULL = 16
"""How many steps may wait for the coordinator before the next file is read: a reader of files need not drop any
step."""

Say = Callable[[str], None]


class _Seen(NamedTuple):
    """The size in bytes and the time of the last change of a file, by which a rewritten file is told from the one
    before."""

    size: int
    modified: int


class Files:
    """The files of a log directory: each is yielded once it is whole, and again if it was rewritten since."""

    def __init__(self, directory: Path, settle: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Prepare to read `directory`.

        `settle`: a file that ends in a whole line and has not changed for so many seconds is whole; so is one when the
        next was begun after it, since the logger writes them one after the other.
        """
        self._directory = directory
        self._settle = settle
        self._clock = clock
        self._told: dict[int, _Seen] = {}
        self._since: dict[int, tuple[_Seen, float]] = {}

    def whole(self, *, ended: bool = False) -> Iterator[tuple[int, Path]]:
        """Yield steps and their files, in the order they were written. `ended`: no process writes any more.

        Raises:
            ConfigError: The directory holds experiments of NeMo RL, not the files of one.
        """
        found = self._found()
        for step, (path, seen) in sorted(found.items(), key=lambda item: (item[1][1].modified, item[0])):
            if self._told.get(step) == seen or not seen.size:
                continue
            begun_after = any(other.modified > seen.modified for _, other in found.values())
            if ended or begun_after or self._settled(step, path, seen):
                self._told[step] = seen
                yield step, path

    def skip(self, last: int) -> None:
        """Count the files of steps up to `last` as yielded."""
        self._told |= {step: seen for step, (_, seen) in self._found().items() if step <= last}

    def _found(self) -> dict[int, tuple[Path, _Seen]]:
        found = {}
        for path in self._directory.glob("train_data_step*.jsonl"):
            try:
                status = path.stat()
            except FileNotFoundError:  # gone since it was listed
                continue
            if (name := NAME.fullmatch(path.name)) is not None:
                found[int(name[1])] = (path, _Seen(status.st_size, status.st_mtime_ns))
        if not found and (experiments := sorted(self._directory.glob("exp_*"))):
            raise ConfigError(f"{self._directory} holds experiments; name one of them: {experiments[-1]} is the latest")
        return found

    def _settled(self, step: int, path: Path, seen: _Seen) -> bool:
        before, since = self._since.get(step, (None, 0.0))
        if before != seen:
            self._since[step] = (seen, self._clock())
            return self._settle <= 0 and _ends_whole(path)
        return self._clock() - since >= self._settle and _ends_whole(path)


def _ends_whole(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"
    except OSError:  # gone or emptied since it was listed
        return False


@dataclass(frozen=True)
class Following:
    """What is followed, and how its files are read. `watching` makes the watcher of an attempt, of that number or of
    the next one."""

    directory: Path
    watching: Callable[[int | None], Watcher]
    say: Say
    kind: str = "text"
    logprobs_of: LogprobsOf | None = None
    settle: float = 5.0

    def run(self, go_on: tuple[int, int] | None, ended: Callable[[], bool]) -> int:
        """Post steps as their files become whole, until `ended`; return how many did not arrive or could not be read.

        `go_on` is the attempt and step that the coordinator has, after which this goes on. A file that comes again with
        another content, or a step that comes after a later one, begins a new attempt: the run was taken up from a
        checkpoint. The run is over where this returns, or where Ctrl-C ends it. Where this fails, nothing is
        said of the run.

        Raises:
            ConfigError: No step can arrive, because an address, a token or a setting is wrong; or the directory holds
                experiments.
        """
        files = Files(self.directory, self.settle)
        attempt, last = go_on or (None, -1)
        if go_on is not None:
            files.skip(last)
        watcher, lost, said, over = self.watching(attempt), 0, set[str](), False
        try:
            while True:
                complete = ended()
                for step, path in files.whole(ended=complete):
                    if step <= last:
                        lost += _close(watcher, over=False)
                        watcher = self.watching(None)
                    last = step
                    try:
                        self._post(watcher, step, path, said)
                    except RecordError as error:
                        lost += 1
                        self._say_once(said, str(error).removeprefix(f"{path}"), str(error))
                if complete:
                    break
                time.sleep(POLL_SECONDS)
                _refuse_obstacle(watcher)
            over = True
        except KeyboardInterrupt:
            over = True
            raise
        finally:
            lost += _close(watcher, over=over)
        _refuse_obstacle(watcher)
        return lost

    def _post(self, watcher: Watcher, step: int, path: Path, said: set[str]) -> None:
        rows = nemo_rl.read_rows(path)
        values = nemo_rl.step_values(rows, self.kind, self.logprobs_of)
        if not nemo_rl.is_masked(rows):
            self._say_once(said, nemo_rl.UNMASKED, f"{path}: {nemo_rl.UNMASKED}")
        while watcher.counts.waiting >= FULL:
            watcher.flush(1.0)
            _refuse_obstacle(watcher)
        watcher.step(step=step, **values)

    def _say_once(self, said: set[str], reason: str, sentence: str) -> None:
        if reason not in said:
            said.add(reason)
            self.say(sentence)


def latest(client: Client, run: str) -> tuple[int, int] | None:
    """Return the latest attempt and step of a run that the coordinator has; None if it has no step of the run."""
    try:
        found = client.run(run)
    except NotFoundError:
        return None
    return None if found.attempt is None or found.step is None else (found.attempt, found.step)


def _refuse_obstacle(watcher: Watcher) -> None:
    """Raise `ConfigError` where no step can arrive. A training run goes on then; nobody needs a follower that cannot
    post."""
    if (why := watcher.obstacle) is not None:
        raise ConfigError(f"nothing can be posted: {why}")


def _close(watcher: Watcher, *, over: bool) -> int:
    """Close a watcher; return how many steps did not arrive."""
    watcher.close(over=over)
    counts = watcher.counts
    return counts.waiting + counts.dropped + counts.refused
