"""What a block of code takes of the machine."""

from pathlib import Path
from typing import Self


class Watch:
    """What a block adds to the process's peak of resident memory, and the bytes that its system calls move."""

    def __enter__(self) -> Self:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self._before, self._moved = _status("VmRSS"), _moved()
        return self

    def __exit__(self, *_: object) -> None:
        self.peak = _status("VmHWM") - self._before
        self.read, self.written = (now - then for now, then in zip(_moved(), self._moved, strict=True))


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def _moved() -> tuple[int, int]:
    """Bytes read and written; what maps of files take is memory."""
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counts["rchar"]), int(counts["wchar"])
