"""The dashboard's page and files, read once at the start; they hold no data, so they need no token."""

import gzip
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3
from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

router = APIRouter(include_in_schema=False)
ROOT = Path(__file__).resolve().parents[2] / "dashboard"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
"""The content types of files that are served, by suffix; others (licences, notes) are not served."""


@dataclass(frozen=True)
class Asset:
    """One file as it is sent. `tag` changes with its content."""

    media_type: str
    plain: bytes
    packed: bytes
    tag: str

    @classmethod
    def of(cls, path: Path) -> "Asset":
        content = path.read_bytes()
        tag = f'"{blake3(content).hexdigest(16)}"'
        return cls(f"{TYPES[path.suffix]}; charset=utf-8", content, gzip.compress(content, 9, mtime=0), tag)


ASSETS = {
    path.relative_to(ROOT).as_posix(): Asset.of(path)
    for path in sorted(ROOT.rglob("*"))
    if path.is_file() and path.suffix in TYPES
}


@router.get("/")
async def page(request: Request) -> Response:
    """Return the page itself."""
    return _send(ASSETS["index.html"], request)


@router.get("/dashboard/{path:path}")
async def asset(path: str, request: Request) -> Response:
    """Return a file that the page loads: only files that were there at the start."""
    if path not in ASSETS:
        raise HTTPException(404, "the dashboard has no such file")
    return _send(ASSETS[path], request)


def _send(asset: Asset, request: Request) -> Response:
    # Asked for again at every visit, so that a new release never runs against old files.
    headers = {"ETag": asset.tag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
    if request.headers.get("if-none-match") == asset.tag:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(asset.packed, media_type=asset.media_type, headers={**headers, "Content-Encoding": "gzip"})
    return Response(asset.plain, media_type=asset.media_type, headers=headers)
