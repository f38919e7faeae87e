"""A check that weights moved under is made anew."""

import threading
from collections.abc import Iterator

import pytest

from omni_rl.bridge.between_syncs import ATTEMPTS, between_syncs
from omni_rl.errors import WeightsMovedError


def test_a_look_during_which_the_trainer_learnt_does_not_count() -> None:
    versions: Iterator[str] = iter(["1", "2", "2", "2"])
    found = iter(["of two versions", "of one"])
    assert between_syncs(lambda: next(found), lambda: next(versions), threading.Lock()) == "of one"


def test_a_trainer_that_never_rests_is_told() -> None:
    version = iter(range(1000))
    looks: list[None] = []
    with pytest.raises(WeightsMovedError, match="learnt during each"):
        between_syncs(lambda: looks.append(None), lambda: str(next(version)), threading.Lock())
    assert len(looks) == ATTEMPTS


def test_no_sync_runs_meanwhile() -> None:
    syncs = threading.Lock()
    assert between_syncs(syncs.locked, lambda: "1", syncs)
    assert not syncs.locked()
