"""The rules of the media store at their bounds, and what is left where something goes wrong."""

import errno
import os
import time
from pathlib import Path

import pytest
from blake3 import blake3

from omni_rl.errors import MediaStoreError, NotFoundError, TooLargeError
from omni_rl.ledger.media_store import PIECE, MediaRules, MediaStore, Put

GIB, DAY, HOUR = 2**30, 24 * 60 * 60, 60 * 60


class Clock:
    """A clock that a test sets."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    result = Clock(float(int(time.time()) + 100))
    monkeypatch.setattr("omni_rl.ledger.media_store.time.time", result)
    return result


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.rglob("*") if path.is_file()}


def sparse(directory: Path, number: int, size: int, used: float) -> str:
    """A file in the store of any size, which takes no room on the disk."""
    digest = blake3(b"%d" % number).hexdigest()
    path = directory / digest[:2] / digest
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    os.utime(path, (used, used))
    return digest


def test_a_quota_is_filled_to_its_last_byte(tmp_path: Path) -> None:
    store = MediaStore(tmp_path, MediaRules(quota=10))
    whole = store.put(b"0123456789").digest
    assert (whole in store, store.size) == (True, 10)
    halves = [store.put(content).digest for content in (b"01234", b"56789")]
    assert [digest in store for digest in (whole, *halves)] == [False, True, True]
    third = store.put(b"x").digest
    assert [digest in store for digest in (*halves, third)] == [False, True, True]
    assert store.size == 6
    with pytest.raises(TooLargeError, match="a media item of 11 bytes; the store holds 10"):
        store.put(b"01234567890")
    assert files(tmp_path) == {halves[1], third}
    assert store.put(b"").stored == "new"


def test_without_rules_a_store_holds_ten_gib_for_thirty_days(tmp_path: Path, clock: Clock) -> None:
    old = sparse(tmp_path, 0, 1, clock.now - 30 * DAY - 1)
    kept = sparse(tmp_path, 1, 1, clock.now - 30 * DAY + 1)
    large = sparse(tmp_path, 2, 10 * GIB - 1, clock.now)
    store = MediaStore(tmp_path)
    assert [digest in store for digest in (old, kept, large)] == [False, True, True]
    assert store.size == 10 * GIB
    store.put(b"x")
    assert [digest in store for digest in (kept, large)] == [False, True], "what was used least recently went"


def test_an_item_goes_when_its_days_are_over_and_not_before(tmp_path: Path, clock: Clock) -> None:
    store = MediaStore(tmp_path, MediaRules(days=2))
    first, second, third = (store.put(content).digest for content in (b"1", b"2", b"3"))
    clock.now += DAY
    store.get(second)
    assert store.put(b"3").stored == "same"  # which uses it, too
    clock.now += DAY
    store.tidy()
    assert len(store) == 3
    clock.now += 1
    store.tidy()
    assert [digest in store for digest in (first, second, third)] == [False, True, True]
    assert files(tmp_path) == {second, third}
    clock.now += DAY
    assert len(MediaStore(tmp_path, MediaRules(days=2))) == 0
    assert store.size == 2


def test_what_is_put_again_is_dropped_after_what_is_not(tmp_path: Path, clock: Clock) -> None:
    store = MediaStore(tmp_path, MediaRules(quota=3))
    digests = [store.put(content).digest for content in (b"1", b"2", b"3")]
    clock.now += 5
    assert store.put(b"1") == Put(digests[0], "same")
    store.put(b"4")
    assert [digest in store for digest in digests] == [True, False, True]
    clock.now += 5
    again = MediaStore(tmp_path, MediaRules(quota=2))
    assert digests[2] not in again, "the order of use outlives the process"
    assert digests[0] in again


def test_it_is_said_whether_there_was_anything_to_drop(tmp_path: Path) -> None:
    store = MediaStore(tmp_path)
    digest = store.put(b"123").digest
    store.put(b"4567")
    assert store.drop(digest)
    assert not store.drop(digest)
    assert (store.size, len(store)) == (4, 1)
    assert digest not in files(tmp_path)


class Raced(MediaStore):
    """A store in which another thread has put the same item while one writes it."""

    def _unfinished(self, digest: str, content: bytes | memoryview) -> Path:
        result = super()._unfinished(digest, content)
        self._unfinished = super()._unfinished  # type: ignore[method-assign]
        assert self.put(content).stored == "new"
        return result


def test_an_item_that_two_put_at_once_is_there_once(tmp_path: Path) -> None:
    store = Raced(tmp_path)
    put = store.put(b"picture")
    assert put.stored == "same"
    assert (len(store), store.size, files(tmp_path)) == (1, 7, {put.digest})
    assert store.get(put.digest) == b"picture"


def test_an_item_that_does_not_fit_on_the_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MediaStore(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(MediaStoreError, match="cannot be written: No space left on device"):
            store.put(b"picture")
    assert (len(store), store.size, files(tmp_path)) == (0, 0, set())
    assert store.put(b"picture").stored == "new"


def test_only_its_own_files_are_the_stores(tmp_path: Path, clock: Clock) -> None:
    digest = MediaStore(tmp_path).put(b"picture").digest
    place = tmp_path / digest[:2]
    (tmp_path / "zz").mkdir()
    (tmp_path / "00").mkdir()
    others = [
        place / "readme",
        tmp_path / "zz" / digest,
        tmp_path / "00" / digest,
        place / digest.upper(),
        place / ".new",
    ]
    old = place / ".old"
    for path in (*others, old):
        path.write_bytes(b"12345")
        used = clock.now - HOUR - (1 if path == old else 0)
        os.utime(path, (used, used))
    (place / ("0" * 62)).mkdir()
    store = MediaStore(tmp_path)
    assert (len(store), store.size) == (1, 7)
    assert all(path.exists() for path in others)
    assert not old.exists()


def test_a_long_item_is_checked_to_its_end_and_read_from_its_beginning(tmp_path: Path) -> None:
    store = MediaStore(tmp_path)
    content = bytes(range(256)) * (2 * PIECE // 256) + b"end"
    digest = store.put(content).digest
    with store.open(digest) as file:
        store.drop(digest)
        assert file.read() == content, "it stays readable"
    store.put(content)
    path = tmp_path / digest[:2] / digest
    path.write_bytes(content[:-1] + b"D")
    with pytest.raises(MediaStoreError, match=f"media {digest} are damaged in .*; they were dropped"):
        store.open(digest)
    assert (len(store), store.size, path.exists()) == (0, 0, False)
    with pytest.raises(NotFoundError):
        store.open(digest)


def test_a_use_is_written_to_the_file(tmp_path: Path, clock: Clock) -> None:
    store = MediaStore(tmp_path)
    digest = store.put(b"picture").digest
    clock.now += 77
    store.get(digest)
    assert (tmp_path / digest[:2] / digest).stat().st_mtime == clock.now
