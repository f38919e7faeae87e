"""The media of kept samples, by the digest of their bytes. They come as bytes; no address is ever fetched."""

import asyncio
from typing import Annotated

from blake3 import blake3
from fastapi import APIRouter, Header, Path, Request, Response

from omni_rl.api.media import MediaAnswer
from omni_rl.errors import MediaError
from omni_rl_services.coordinator.deps import CoordinatorDep, Reader, Syncer
from omni_rl_services.coordinator.media import TYPES, check, kind_of
from omni_rl_services.coordinator.problems import documented
from omni_rl_services.coordinator.settings import Bounds

router = APIRouter(prefix="/v1/media", tags=["media"])
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
    """Keep a picture (PNG, JPEG), sound (WAV) or video (MP4) that records name."""
    content = await request.body()
    await asyncio.to_thread(_check, content, content_type, digest, coordinator.settings.bounds)
    return MediaAnswer(digest=digest, bytes=len(content), stored=(await coordinator.store.put_media(content)).stored)


def _check(content: bytes, content_type: str, digest: str, bounds: Bounds) -> None:
    check(content, content_type, bounds)
    if blake3(content).hexdigest() != digest:
        raise MediaError("the digest in the path is not the blake3 of the bytes")


@router.get("/{digest}", response_class=Response, responses={200: {"content": BYTES}, **documented(401, 403, 404, 422)})
async def show(digest: DigestPath, coordinator: CoordinatorDep, caller: Reader) -> Response:
    """Its bytes. Once made they never change."""
    content = await coordinator.store.media(digest)
    headers = {"Content-Security-Policy": "sandbox; default-src 'none'", "Cache-Control": "private, max-age=86400"}
    return Response(content, media_type=kind_of(content), headers=headers)
