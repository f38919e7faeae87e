"""A directory appears whole or takes another's place at once, whoever is killed, waits or reads meanwhile."""

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from omni_rl.errors import CheckpointError
from omni_rl.files import atomic, exchange
from omni_rl.files.atomic import atomic_directory
from omni_rl.files.reading import read_whole

PARTS = 20


def keep_notes(name: str, written: frozenset[str]) -> bool:
    return not name.startswith("part-")


def write(target: Path, content: str, parts: int = PARTS) -> None:
    with atomic_directory(target, keep_notes) as new:
        for number in range(parts):
            (new / f"part-{number}").write_text(content)


def contents(directory: Path) -> set[str]:
    return {path.read_text() for path in directory.glob("part-*")}


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture(params=["exchange", "two renames"])
def swap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to take a directory's place: the second is that of file systems such as NFS."""
    if request.param == "two renames":
        monkeypatch.setattr(atomic, "exchange", lambda one, other: False)
    return str(request.param)


def test_here_names_are_exchanged_in_one_step(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert exchange.exchange(tmp_path / "one", tmp_path / "other")
    assert (names(tmp_path / "one"), names(tmp_path / "other")) == (["other"], ["one"])
    with pytest.raises(OSError, match="absent") as raised:
        exchange.exchange(tmp_path / "one", tmp_path / "absent")
    assert raised.value.errno == errno.ENOENT


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "saved"

    def fail() -> None:
        with atomic_directory(target) as directory:
            (directory / "half").write_text("half of it")
            raise OSError("disk full")

    with pytest.raises(CheckpointError, match="disk full"):
        fail()
    assert names(target.parent) == []


def test_what_must_be_new_is_not_overwritten(tmp_path: Path) -> None:
    write(tmp_path / "saved", "precious")
    with pytest.raises(CheckpointError, match="never overwritten"), atomic_directory(tmp_path / "saved"):
        pass
    assert contents(tmp_path / "saved") == {"precious"}


def test_what_stays_is_brought_along_and_nothing_else(tmp_path: Path, swap: str) -> None:
    target = tmp_path / "saved"
    write(target, "old", parts=PARTS + 5)
    (target / "notes.txt").write_text("mine")
    (target / "runs" / "deep").mkdir(parents=True)
    (target / "runs" / "deep" / "log").write_text("also mine")
    (target / "link").symlink_to("../elsewhere/blob")
    target.chmod(0o750)
    with (target / "runs" / "deep" / "log").open("a") as log:
        write(target, "new")
        log.write(", and still written to")
    assert names(target) == sorted([*(f"part-{number}" for number in range(PARTS)), "link", "notes.txt", "runs"])
    assert contents(target) == {"new"}
    assert (target / "notes.txt").read_text() == "mine"
    assert (target / "runs" / "deep" / "log").read_text() == "also mine, and still written to"
    assert (target / "link").readlink() == Path("../elsewhere/blob")
    assert target.stat().st_mode & 0o777 == 0o750
    assert names(tmp_path) == ["saved"]


def test_a_writer_that_fails_leaves_the_old_one(tmp_path: Path, swap: str) -> None:
    write(tmp_path / "saved", "old")
    (tmp_path / "saved" / "notes.txt").write_text("mine")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"saved: .*File too large.*as it was"):
            write(tmp_path / "saved", "x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert contents(tmp_path / "saved") == {"old"}
    assert (tmp_path / "saved" / "notes.txt").read_text() == "mine"
    assert names(tmp_path) == ["saved"]


def test_a_link_to_a_directory_stays_a_link(tmp_path: Path) -> None:
    write(tmp_path / "first", "old")
    (tmp_path / "latest").symlink_to("first")
    write(tmp_path / "latest", "new")
    assert (tmp_path / "latest").readlink() == Path("first")
    assert contents(tmp_path / "first") == {"new"}


def test_the_working_directory_can_be_saved_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swap: str) -> None:
    write(tmp_path / "saved", "old")
    monkeypatch.chdir(tmp_path / "saved")
    write(Path(), "new")
    assert contents(Path()) == {"new"}


@pytest.mark.parametrize("place", ["a file", "a mount point"])
def test_what_cannot_be_replaced_is_refused_before_anything_is_written(tmp_path: Path, place: str) -> None:
    target = Path("/dev/shm") if place == "a mount point" else tmp_path / "file"
    if place == "a file":
        target.write_text("mine")
    written = []
    with pytest.raises(CheckpointError, match=place), atomic_directory(target, keep_notes):
        written.append(target)
    assert written == []


WRITER = """
import itertools, sys
from pathlib import Path
from omni_rl.files import atomic
target, parts = Path(sys.argv[1]), int(sys.argv[2])
if sys.argv[3] == "two renames":
    atomic.exchange = lambda one, other: False
for number in itertools.count(int(sys.argv[4])):
    with atomic.atomic_directory(target, lambda name, written: not name.startswith("part-")) as new:
        for part in range(parts):
            (new / f"part-{part}").write_text(str(number))
    print("saved", flush=True)
"""


def start(target: Path, how: str = "exchange", first: int = 0) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", WRITER, os.fspath(target), str(PARTS), how, str(first)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"saved\n"
    return process


def kill(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("how", ["exchange", "two renames"])
def test_writers_killed_at_random_leave_one_whole_directory(tmp_path: Path, how: str) -> None:
    target = tmp_path / "saved"
    write(target, "first")
    (target / "notes.txt").write_text("mine")
    chance = random.Random(0)
    left_over = 0
    for attempt in range(20):
        process = start(target, how, first=1000 * attempt)
        time.sleep(chance.uniform(0, 0.02))
        kill(process)
        left = [name for name in names(tmp_path) if name.startswith(".saved.")]
        left_over += bool(left)
        if how == "two renames" and not target.exists():  # killed between the two: nothing is lost
            left = [name for name in left if name.endswith(".replaced")]
            assert len(left) == 1
            target_now = tmp_path / left[0]
        else:
            target_now = target
        assert len(contents(target_now)) == 1
        assert len(list(target_now.glob("part-*"))) == PARTS
        assert (target_now / "notes.txt").read_text() == "mine"
    assert left_over > 5, "the writers were hardly ever killed while they wrote"
    write(target, "last")
    assert contents(target) == {"last"}
    assert (target / "notes.txt").read_text() == "mine"
    assert names(tmp_path) == ["saved"]


def test_a_writer_killed_between_two_renames_is_made_good_by_the_next(tmp_path: Path) -> None:
    write(tmp_path / "saved", "old")
    (tmp_path / "saved" / "notes.txt").write_text("mine")
    (tmp_path / "saved").rename(tmp_path / f".saved.{'0' * 32}.replaced")
    write(tmp_path / "saved", "new")
    assert contents(tmp_path / "saved") == {"new"}
    assert (tmp_path / "saved" / "notes.txt").read_text() == "mine"
    assert names(tmp_path) == ["saved"]


def test_only_what_a_dead_writer_of_the_same_name_left_is_cleared_away(tmp_path: Path) -> None:
    mine = [f".saved.{'0' * 32}.partial", f".saved.{'1' * 32}.replaced"]
    others = [f".saved.again.{'0' * 32}.partial", ".saved.backup", f"saved.{'0' * 32}.partial"]
    write(tmp_path / "saved", "old")
    for name in (*mine, *others):
        (tmp_path / name).mkdir()
    write(tmp_path / "saved", "new")
    assert names(tmp_path) == sorted([*others, "saved"])


def test_writers_of_one_directory_wait_for_each_other(tmp_path: Path) -> None:
    target = tmp_path / "saved"
    processes = [start(target, first=1000 * number) for number in range(2)]
    for _ in range(50):
        read = read_whole(target, lambda: contents(target))
        assert len(read) == 1
    for process in processes:
        kill(process)
    write(target, "last")
    assert names(tmp_path) == ["saved"]


def test_a_reader_gets_one_state_of_a_directory_that_is_replaced_meanwhile(tmp_path: Path) -> None:
    target = tmp_path / "saved"
    write(target, "old")
    attempts: list[str] = []

    def read() -> tuple[str, str]:
        first = (target / "part-0").read_text()
        if not attempts:
            replacing = threading.Thread(target=write, args=(target, "new"))
            replacing.start()
            replacing.join()
        attempts.append(first)
        return first, (target / "part-1").read_text()

    assert read_whole(target, read) == ("new", "new")
    assert attempts == ["old", "new"]


def test_a_reader_waits_for_a_writer_between_two_renames(tmp_path: Path) -> None:
    target, aside = tmp_path / "saved", tmp_path / f".saved.{'0' * 32}.replaced"
    write(aside, "old")

    def finish() -> None:
        write(tmp_path / "new", "new")
        (tmp_path / "new").rename(target)

    other = threading.Timer(0.05, finish)
    other.start()
    assert read_whole(target, lambda: contents(target)) == {"new"}
    other.join()


def test_an_error_of_a_reader_counts_only_if_the_directory_was_still(tmp_path: Path) -> None:
    target = tmp_path / "saved"
    write(target, "old")
    with pytest.raises(FileNotFoundError):
        read_whole(target, lambda: (target / "absent").read_text())

    def restless() -> str:
        write(target, "new")
        raise CheckpointError("half of one and half of the other")

    with pytest.raises(CheckpointError, match="was replaced 5 times"):
        read_whole(target, restless)
