"""Files that are mapped whole: all their blocks and pages are there from the start, or an error says why not."""

import re
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from omni_rl.errors import SlabError, SlabFullError
from omni_rl.sync import _mapping
from omni_rl.sync._mapping import Mapped, allocate

SIZE = 2**18
Usage = namedtuple("Usage", "total used free")


def resident_bytes(path: Path) -> int:
    """How much of the only mapping of a file is in this process's memory."""
    found = re.search(rf" {re.escape(str(path))}\n(?:.*\n)*?Rss: *(\d+) kB", Path("/proc/self/smaps").read_text())
    assert found is not None
    return 1024 * int(found[1])


@pytest.mark.parametrize("kernel", ["new", "before 5.14"])
@pytest.mark.parametrize("writable", [False, True])
def test_every_page_is_in_memory_before_it_is_used(
    tmp_path: Path, writable: bool, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel != "new":  # such a kernel knows neither piece of advice
        monkeypatch.setattr(_mapping, "_MADV_POPULATE_READ", 10_000)
        monkeypatch.setattr(_mapping, "_MADV_POPULATE_WRITE", 10_000)
    path = tmp_path / "file"
    allocate(path, SIZE)
    mapped = Mapped(path, writable=writable)
    assert resident_bytes(path) == SIZE
    mapped.close()
    mapped.close()
    assert mapped.bytes.size == 0


@pytest.mark.parametrize(("asked", "made"), [(0, 1), (1, 1), (4095, 4095), (4096, 4096), (4097, 4097)])
def test_a_file_has_the_bytes_that_were_asked_for_and_one_at_least(tmp_path: Path, asked: int, made: int) -> None:
    """An empty file cannot be mapped."""
    path = tmp_path / "file"
    allocate(path, asked)
    assert path.stat().st_size == made
    assert path.stat().st_mode & 0o777 == 0o600
    mapped = Mapped(path, writable=False)
    assert mapped.bytes.tolist() == [0] * made


def test_the_last_free_byte_may_be_taken_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(9000, 8900, 100))
    allocate(tmp_path / "fits", 100)
    with pytest.raises(SlabFullError, match=r"needs 101 bytes: .*100 bytes are free; free some, enlarge"):
        allocate(tmp_path / "does-not", 101)
    assert [path.name for path in tmp_path.iterdir()] == ["fits"]


def test_a_place_where_no_file_can_be_is_told(tmp_path: Path) -> None:
    with pytest.raises(SlabError, match=r"nowhere/file cannot be made: .*No such file") as refused:
        allocate(tmp_path / "nowhere" / "file", 100)
    assert not isinstance(refused.value, SlabFullError)
    (tmp_path / "there").touch()
    with pytest.raises(SlabError, match="there exists; open it, or remove it first"):
        allocate(tmp_path / "there", 100)
    (tmp_path / "empty").touch()
    with pytest.raises(SlabError, match="empty cannot be opened"):
        Mapped(tmp_path / "empty", writable=False)


def test_what_is_written_in_one_mapping_is_read_in_the_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    allocate(path, 64)
    writer, reader = Mapped(path, writable=True), Mapped(path, writable=False)
    writer.bytes[8:20] = np.arange(12, dtype=np.uint8)
    assert reader.bytes[7:21].tolist() == [0, *range(12), 0]
    assert path.read_bytes()[8:20] == bytes(range(12))
    assert not reader.bytes.flags.writeable


@pytest.mark.parametrize(
    ("dtype", "shape", "values"),
    [
        (torch.uint8, (2, 3), [[8, 9, 10], [11, 12, 13]]),
        (torch.int16, (2,), [8 + 9 * 256, 10 + 11 * 256]),
        (torch.int32, (), 8 + 9 * 2**8 + 10 * 2**16 + 11 * 2**24),
        (torch.int64, (1, 1), [[sum((8 + place) << 8 * place for place in range(8))]]),
        (torch.float32, (0, 4), []),
    ],
)
def test_a_view_is_of_the_bytes_at_its_offset(
    tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...], values: object
) -> None:
    (tmp_path / "file").write_bytes(bytes(range(64)))
    mapped = Mapped(tmp_path / "file", writable=False)
    view = mapped.tensor(8, dtype, shape)
    mapped.close()
    assert (view.dtype, tuple(view.shape), view.tolist()) == (dtype, shape, values)


def test_a_path_names_what_is_mapped_until_the_file_is_another_or_of_another_length(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    mapped = Mapped(path, writable=False)
    assert mapped.is_at(path)
    path.write_bytes(bytes(101))
    assert not mapped.is_at(path)
    path.write_bytes(bytes(99))
    assert not mapped.is_at(path)
    path.write_bytes(bytes(100))
    assert mapped.is_at(path)
    other = tmp_path / "other"
    other.write_bytes(bytes(100))
    assert not mapped.is_at(other)
    assert not Mapped(other, writable=False).is_at(path)
    path.unlink()
    assert not mapped.is_at(path)
