"""A check that weights moved under is made anew."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from omni_rl.bridge import between_syncs as module
from omni_rl.bridge.between_syncs import ATTEMPTS, between_syncs
from omni_rl.errors import WeightsMovedError


class Job:
    """Both policies, and a job that learns during the first look. Its request to sync is on its way until a look could
    have begun anew."""

    def __init__(self) -> None:
        self.trainer = self.engines = "1"
        self.syncs = threading.Lock()
        self.looks = 0
        self._asked = threading.Event()

    def look(self) -> tuple[str, str]:
        self.looks += 1
        if self.looks == 1:
            self.trainer = "2"
        return self.trainer, self.engines

    def is_served(self, version: str) -> bool:
        self._asked.set()
        return version == self.engines

    def sync(self) -> None:
        assert self._asked.wait(10)
        assert self.syncs.acquire(timeout=10), "the check kept the sync out that it waits for"
        self.engines = self.trainer
        self.syncs.release()


def test_a_look_during_which_the_trainer_learnt_does_not_count() -> None:
    versions: Iterator[str] = iter(["1", "2", "2", "2"])
    found = iter(["of two versions", "of one"])
    syncs = threading.Lock()
    assert between_syncs(lambda: next(found), lambda: next(versions), lambda version: True, syncs) == "of one"


def test_the_look_after_an_update_waits_for_the_jobs_sync() -> None:
    job = Job()
    with ThreadPoolExecutor() as threads:
        syncing = threads.submit(job.sync)
        assert between_syncs(job.look, lambda: job.trainer, job.is_served, job.syncs) == ("2", "2")
        syncing.result()
    assert job.looks == 2


def test_an_update_that_no_sync_follows_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SYNC_SECONDS", 0.0)
    job = Job()
    with pytest.raises(WeightsMovedError, match="no sync had brought its weights"):
        between_syncs(job.look, lambda: job.trainer, job.is_served, job.syncs)
    assert job.looks == 1
    assert not job.syncs.locked()


def test_a_trainer_that_never_rests_is_told() -> None:
    version = iter(range(1000))
    looks: list[None] = []
    with pytest.raises(WeightsMovedError, match="learnt during each"):
        between_syncs(lambda: looks.append(None), lambda: str(next(version)), lambda served: True, threading.Lock())
    assert len(looks) == ATTEMPTS


def test_engines_that_are_behind_the_trainer_are_looked_at_as_they_are() -> None:
    assert between_syncs(lambda: "stale", lambda: "2", lambda version: False, threading.Lock()) == "stale"


def test_no_sync_runs_meanwhile() -> None:
    syncs = threading.Lock()
    assert between_syncs(syncs.locked, lambda: "1", lambda version: True, syncs)
    assert not syncs.locked()
