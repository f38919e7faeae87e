"""Where the pinned artefacts lie, and copies that a test may open: what is opened may be migrated, or locked."""

import json
import zipfile
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"


def pinned_json(name: str) -> Any:
    """A JSON document as it was written."""
    return json.loads((DATA / name).read_text())


def unpacked(name: str, directory: Path) -> Path:
    """`directory`, with what the archive `name` holds."""
    with zipfile.ZipFile(DATA / name) as archive:
        archive.extractall(directory)
    return directory


def packed(directory: Path, archive: Path) -> None:
    """Every file below `directory`, in an archive without times: the same files give the same bytes."""
    with zipfile.ZipFile(archive, "x", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for path in sorted(path for path in directory.rglob("*") if path.is_file()):
            file.writestr(zipfile.ZipInfo(str(path.relative_to(directory))), path.read_bytes(), zipfile.ZIP_DEFLATED)
