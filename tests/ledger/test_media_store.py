"""Media by content: whole or not at all, within their quota, for their days, and never where they are kept out."""

import contextlib
import os
import threading
import time
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_rl.errors import MediaStoreError, NotFoundError, TooLargeError
from omni_rl.ledger import media_store
from omni_rl.ledger.media_store import DAY, MediaRules, MediaStore, Put


def files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def test_what_was_put_comes_back_by_its_blake3(tmp_path: Path) -> None:
    store = MediaStore(tmp_path / "media")
    content = b"\x89PNG" + bytes(1000)
    digest = blake3(content).hexdigest()
    assert store.put(content) == Put(digest, "new")
    assert store.put(memoryview(content)) == Put(digest, "same")
    assert store.get(digest) == content
    assert (len(store), store.size, len(files(tmp_path))) == (1, 1004, 1)
    assert MediaStore(tmp_path / "media").get(digest) == content


def test_there_are_no_more_items_than_the_index_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_store, "MOST", 3)
    store = MediaStore(tmp_path)
    digests = [store.put(bytes([n])).digest for n in range(3)]
    store.get(digests[0])
    store.put(b"one more")
    assert [digest in store for digest in digests] == [True, False, True]
    assert len(MediaStore(tmp_path)) == len(store) == len(files(tmp_path)) == 3


def test_what_was_used_least_recently_goes_first(tmp_path: Path) -> None:
    store = MediaStore(tmp_path, MediaRules(quota=300))
    first, second, third = (store.put(bytes([n]) * 100).digest for n in range(3))
    store.get(first)
    fourth = store.put(b"d" * 100).digest
    assert [name in store for name in (first, second, third, fourth)] == [True, False, True, True]
    assert store.size == 300
    assert len(files(tmp_path)) == 3
    with pytest.raises(NotFoundError, match="not kept"):
        store.get(second)
    assert store.put(b"\1" * 100).stored == "new"


def test_use_is_remembered_by_the_next_process(tmp_path: Path) -> None:
    store = MediaStore(tmp_path)
    old, used = (store.put(bytes([n]) * 100).digest for n in range(2))
    for path in files(tmp_path):
        os.utime(path, (time.time() - 100, time.time() - 100))
    MediaStore(tmp_path).get(used)
    small = MediaStore(tmp_path, MediaRules(quota=150))
    assert (old in small, used in small) == (False, True)


def test_media_go_after_their_days(tmp_path: Path) -> None:
    store = MediaStore(tmp_path, MediaRules(days=2))
    old, fresh = (store.put(bytes([n]) * 10).digest for n in range(2))
    os.utime(tmp_path / old[:2] / old, (0, time.time() - 3 * DAY))
    again = MediaStore(tmp_path, MediaRules(days=2))
    assert (old in again, fresh in again) == (False, True)
    assert len(files(tmp_path)) == 1
    assert old not in MediaStore(tmp_path, MediaRules(days=None))


def test_redaction_keeps_media_out(tmp_path: Path) -> None:
    store = MediaStore(tmp_path, MediaRules(keep=False))
    put = store.put(b"a face")
    assert put == Put(blake3(b"a face").hexdigest(), "redacted")
    assert files(tmp_path) == []
    with pytest.raises(NotFoundError):
        store.get(put.digest)


def test_one_item_over_the_quota_is_refused(tmp_path: Path) -> None:
    store = MediaStore(tmp_path, MediaRules(quota=10))
    kept = store.put(b"123").digest
    with pytest.raises(TooLargeError, match="a media item of 11 bytes; the store holds 10"):
        store.put(b"x" * 11)
    assert kept in store


@pytest.mark.parametrize(
    "name", ["", "../../etc/passwd", "/etc/passwd", "ab/" + "c" * 64, "A" * 64, "g" * 64, "a" * 63, "a" * 65, "\0" * 64]
)
def test_only_digests_are_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFoundError):
        MediaStore(tmp_path).get(name)


def test_a_link_in_the_store_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    digest = blake3(b"secret").hexdigest()
    (tmp_path / "media" / digest[:2]).mkdir(parents=True)
    (tmp_path / "media" / digest[:2] / digest).symlink_to(secret)
    store = MediaStore(tmp_path / "media")
    assert digest not in store
    assert secret.read_bytes() == b"secret"


def test_damage_is_found_and_not_handed_out(tmp_path: Path) -> None:
    store = MediaStore(tmp_path)
    digest = store.put(b"picture").digest
    (tmp_path / digest[:2] / digest).write_bytes(b"pictura")
    with pytest.raises(MediaStoreError, match="damaged"):
        store.get(digest)
    assert store.put(b"picture").stored == "new"
    assert store.get(digest) == b"picture"


def test_what_somebody_removed_is_gone_without_an_error_of_ours(tmp_path: Path) -> None:
    store = MediaStore(tmp_path)
    digest = store.put(b"picture").digest
    (tmp_path / digest[:2] / digest).unlink()
    with pytest.raises(NotFoundError, match="not kept any more"):
        store.get(digest)
    assert (len(store), store.size) == (0, 0)


def test_unfinished_files_of_dead_writers_are_removed(tmp_path: Path) -> None:
    digest = MediaStore(tmp_path).put(b"picture").digest
    left = tmp_path / digest[:2] / ".left"
    left.write_bytes(b"half")
    MediaStore(tmp_path)
    assert left.exists()  # it might be another's, still writing
    os.utime(left, (0, 0))
    assert len(MediaStore(tmp_path)) == 1
    assert not left.exists()


def test_others_cannot_read_media(tmp_path: Path) -> None:
    store = MediaStore(tmp_path / "media")
    digest = store.put(b"a face").digest
    for path in (tmp_path / "media", tmp_path / "media" / digest[:2], tmp_path / "media" / digest[:2] / digest):
        assert path.stat().st_mode & 0o077 == 0


def test_a_place_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MediaStoreError, match="cannot be opened"):
        MediaStore(tmp_path / "file")


def test_many_threads_put_and_get(tmp_path: Path) -> None:
    store = MediaStore(tmp_path, MediaRules(quota=2000))
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for n in range(30):
                content = bytes([(seed * 7 + n) % 50]) * 100
                digest = store.put(content).digest
                with contextlib.suppress(NotFoundError):  # another thread's item took its place
                    assert store.get(digest) == content
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert store.size == 100 * len(store) == sum(path.stat().st_size for path in files(tmp_path)) <= 2000


@settings(max_examples=30, deadline=None)
@given(actions=st.lists(st.tuples(st.sampled_from(["put", "get", "drop", "reopen"]), st.integers(0, 9)), max_size=40))
def test_the_store_is_a_bounded_map_whatever_happens(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, int]]
) -> None:
    directory = tmp_path_factory.mktemp("media")
    rules = MediaRules(quota=1000)
    store = MediaStore(directory, rules)
    contents = {blake3(bytes([n]) * (n * 50 + 1)).hexdigest(): bytes([n]) * (n * 50 + 1) for n in range(10)}
    names = list(contents)
    for action, n in actions:
        match action:
            case "put":
                store.put(contents[names[n]])
                assert names[n] in store
            case "get" if names[n] in store:
                assert store.get(names[n]) == contents[names[n]]
            case "drop":
                store.drop(names[n])
            case "reopen":
                before = {name for name in names if name in store}
                store = MediaStore(directory, rules)
                assert {name for name in names if name in store} == before
        assert store.size == sum(len(contents[name]) for name in names if name in store) <= 1000
