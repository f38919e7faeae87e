"""The locks of slabs and of their owners: who may hold them together, and what is said to those who may not."""

import os
from pathlib import Path

import pytest

from omni_rl.errors import SlabBusyError, SlabError, SlabFullError
from omni_rl.locks import is_free
from omni_rl.sync.lock import WriterLock
from omni_rl.sync.ownership import LOCK, abandoned, take

from .conftest import files_end_at


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "slab-0.lock"


def test_each_writer_gets_another_ticket_which_names_its_process(path: Path) -> None:
    lock = WriterLock(path)
    tickets = []
    for _ in range(2):
        tickets.append(lock.take())
        lock.release()
    lock.release()
    assert len(set(tickets)) == 2
    assert {ticket.split(":")[0] for ticket in tickets} == {str(os.getpid())}


def test_one_lock_is_taken_once(path: Path) -> None:
    lock = WriterLock(path)
    ticket = lock.take()
    for again in (lock.take, lambda: lock.join(ticket), lambda: lock.reading().__enter__()):
        with pytest.raises(SlabBusyError, match=r"^slab-0 is being written by this very process; finish that first"):
            again()
    other = WriterLock(path)
    with pytest.raises(SlabBusyError, match=f"slab-0 is being written by another source .process {os.getpid()}.; wait"):
        other.take()
    lock.release()
    other.take()


def test_a_group_holds_the_lock_until_the_last_has_left(path: Path) -> None:
    first, second, other = WriterLock(path), WriterLock(path), WriterLock(path)
    second.join(first.take())
    for member in (first, second):
        with pytest.raises(SlabBusyError):
            other.take()
        member.release()
    other.take()


def test_readers_share_the_lock_and_leave_it_behind_free(path: Path) -> None:
    one, other = WriterLock(path), WriterLock(path)
    with one.reading(), other.reading(), pytest.raises(SlabBusyError, match=r"\(process unknown\)"):
        WriterLock(path).take()
    one.take()
    # A writer holds the lock shared, so that others of its group can join, and readers of what was sealed can read.
    with other.reading():
        pass


def test_who_has_the_wrong_ticket_holds_nothing_afterwards(path: Path) -> None:
    first, late = WriterLock(path), WriterLock(path)
    ticket = first.take()
    with pytest.raises(SlabBusyError, match=f"process {os.getpid()}"):
        late.join(ticket + "x")
    late.join(ticket)
    late.release()
    first.release()
    first.take()


def test_a_lock_file_that_cannot_be_made_or_written_is_told(path: Path) -> None:
    with pytest.raises(SlabError, match=r"none/slab-0\.lock cannot be opened: .*No such file"):
        WriterLock(path.parent / "none" / "slab-0.lock").take()
    lock = WriterLock(path)
    with files_end_at(0), pytest.raises(SlabFullError, match=r"slab-0\.lock cannot be written: .*; free some room"):
        lock.take()
    WriterLock(path).take()


def test_a_directory_has_one_owner_at_a_time(tmp_path: Path) -> None:
    lock = take(tmp_path)
    assert not is_free(tmp_path / LOCK)
    with pytest.raises(SlabBusyError, match=f"belongs to another slab owner .process {os.getpid()}., which lives; end"):
        take(tmp_path)
    lock.close()
    assert is_free(tmp_path / LOCK)
    take(tmp_path).close()


def test_an_owner_that_cannot_say_who_it_is_owns_nothing(tmp_path: Path) -> None:
    with pytest.raises(SlabError, match=r"none cannot be used: .*No such file") as refused:
        take(tmp_path / "none")
    assert not isinstance(refused.value, SlabFullError)
    with files_end_at(0), pytest.raises(SlabFullError, match=r"owner\.lock cannot be written: .*; free some room"):
        take(tmp_path)
    assert is_free(tmp_path / LOCK)


def test_an_owner_that_has_written_nothing_yet_is_unknown(tmp_path: Path) -> None:
    lock = take(tmp_path)
    (tmp_path / LOCK).write_text("")
    with pytest.raises(SlabBusyError, match=r"\(process unknown\)"):
        take(tmp_path)
    lock.close()


def test_runs_without_an_owner_are_found_by_name(tmp_path: Path) -> None:
    for name in ("omni-rl-b", "omni-rl-a", "omni-rl-owned", "omni-rl-never", "other"):
        (tmp_path / name).mkdir()
    for name in ("omni-rl-b", "omni-rl-a", "other"):
        take(tmp_path / name).close()
    (tmp_path / "omni-rl-file").touch()
    lock = take(tmp_path / "omni-rl-owned")
    assert [path.name for path in abandoned(tmp_path)] == ["omni-rl-a", "omni-rl-b", "omni-rl-never"]
    lock.close()
    assert [path.name for path in abandoned(tmp_path)][-1] == "omni-rl-owned"


def test_what_may_not_be_looked_at_is_nobodys_to_remove(tmp_path: Path) -> None:
    """It may be another user's run; here it is something that is no file at all."""
    (tmp_path / "omni-rl-odd").mkdir()
    (tmp_path / "omni-rl-odd" / LOCK).symlink_to(LOCK)
    assert abandoned(tmp_path) == []
