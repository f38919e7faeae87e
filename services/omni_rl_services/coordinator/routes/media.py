"""Routes for the media of stored samples, by the digest of their bytes. Media are sent as bytes; no address is ever
fetched."""

import asyncio
import os
from typing import Annotated, BinaryIO

from blake3 import blake3
from fastapi import APIRouter, Header, Path, Request, Response
from starlette.types import Receive, Scope, Send

from omni_rl.api.media import MediaAnswer
from omni_rl.errors import MediaError
from omni_rl.ledger.media_store import PIECE
from omni_rl_services.coordinator.deps import CoordinatorDep, Reader, Syncer
from omni_rl_services.coordinator.media import TYPES, check, kind_of
from omni_rl_services.coordinator.problems import documented
from omni_rl_services.coordinator.settings import Bounds

router = APIRouter(prefix="/v1/media", tags=["media"])
HEAD = 64
"""Bytes that are read to find out an item's content type."""
DigestPath = Annotated[
    str, Path(pattern=r"^[0-9a-f]{64}$", description="blake3 of the bytes, hex.", examples=["9f2c" * 16])
]
BYTES = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in TYPES}


@router.put(
    "/{digest}",
    responses=documented(401, 403, 413, 415, 422, 503),
    openapi_extra={"requestBody": {"required": True, "content": BYTES}},
)
async def keep(
    digest: DigestPath,
    request: Request,
    coordinator: CoordinatorDep,
    caller: Syncer,
    content_type: Annotated[str, Header(include_in_schema=False)] = "",
) -> MediaAnswer:
    """Store a picture (PNG, JPEG), sound (WAV) or video (MP4) that records name."""
    content = await request.body()
    await asyncio.to_thread(_check, content, content_type, digest, coordinator.settings.bounds)
    return MediaAnswer(digest=digest, bytes=len(content), stored=(await coordinator.store.put_media(content)).stored)


def _check(content: bytes, content_type: str, digest: str, bounds: Bounds) -> None:
    check(content, content_type, bounds)
    if blake3(content).hexdigest() != digest:
        raise MediaError("the digest in the path is not the blake3 of the bytes")


@router.get(
    "/{digest}", response_class=Response, responses={200: {"content": BYTES}, **documented(401, 403, 404, 422, 503)}
)
async def show(digest: DigestPath, coordinator: CoordinatorDep, caller: Reader) -> Response:
    """Return an item's bytes, which never change."""
    headers = {"Content-Security-Policy": "sandbox; default-src 'none'", "Cache-Control": "private, max-age=86400"}
    return FromFile(await coordinator.store.open_media(digest), headers)


class FromFile(Response):
    """An answer that is read from a file piece by piece: many may ask for the largest items and read them slowly, and
    none of these is in memory whole."""

    def __init__(self, file: BinaryIO, headers: dict[str, str]) -> None:
        kind = kind_of(file.read(HEAD))
        self._left = file.seek(0, os.SEEK_END)
        self._file = file
        file.seek(0)
        super().__init__(media_type=kind, headers={**headers, "Content-Length": str(self._left)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._file:  # whoever asked may be gone before its end, or before its begin
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            while self._left > 0:
                piece = await asyncio.to_thread(self._file.read, PIECE)
                self._left -= len(piece)
                try:
                    await send({"type": "http.response.body", "body": piece, "more_body": self._left > 0})
                except RuntimeError:  # uvloop's, where the client has gone and uvicorn is about to hear of it
                    await asyncio.sleep(0)
                    return
